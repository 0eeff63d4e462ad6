use super::encode::Pass;
use super::*;
use crate::protocol::layout::{Layout, Layouts, Meta};
use crate::wire::bits::BitWriter;
use crate::wire::quantize::Field;

const BUDGET: SnapshotBudget = SnapshotBudget {
    max_bytes: 100_000,
    resend_after: Ticks(4),
};

fn archive(entities: u32) -> (Archive, Vec<NetId>) {
    let fields = vec![Field::linear(16), Field::linear(16).joined()];
    let layouts = [Layout::Words(fields.into()), Layout::Bytes];
    let mut archive = Archive::new(Layouts::new(layouts));
    let nets = (0..entities)
        .map(|_| archive.spawn(Tick(1), PartitionId::GLOBAL, Meta::default(), 1.0))
        .collect();
    (archive, nets)
}

/// A client that was told everything at tick 2.
fn settled_view(archive: &Archive) -> View {
    let mut view = View::new(Tick(1));
    view.set_partitions(archive, Tick(1), &[PartitionId::GLOBAL]);
    encode(&mut view, archive, Tick(2), 0);
    view.handle_ack(0);
    assert_eq!(view.exceptions(), 0);
    view
}

fn encode(view: &mut View, archive: &Archive, tick: Tick, seq: u16) -> Vec<u8> {
    let (mut out, mut apart) = (BitWriter::new(), Vec::new());
    let mut cache = BlockCache::default();
    view.encode(
        archive, tick, seq, None, BUDGET, &mut cache, &mut out, &mut apart,
    );
    out.finish().to_vec()
}

#[test]
fn an_ordinary_client_gets_the_same_bytes_from_the_shared_block_as_from_its_own() {
    let (mut archive, nets) = archive(50);
    for &net in &nets {
        archive.set_words(Tick(1), net, ComponentId(0), &[net.index(), 7]);
    }
    let mut view = settled_view(&archive);
    for (index, &net) in nets.iter().enumerate() {
        match index % 5 {
            0 => archive.set_words(Tick(3), net, ComponentId(0), &[9, 9]),
            1 => archive.set_bytes(Tick(3), net, ComponentId(1), b"spear"),
            2 => archive.remove(Tick(3), net, ComponentId(0)),
            3 => archive.despawn(Tick(3), net),
            _ => {}
        }
    }
    archive.spawn(Tick(3), PartitionId::GLOBAL, Meta::default(), 1.0);

    let pass = Pass {
        archive: &archive,
        tick: Tick(3),
        number: view.next_number,
        end: 100_000,
        room: 100_000,
        resend_after: BUDGET.resend_after,
    };
    let mut cache = BlockCache::default();
    let (mut shared, mut own) = (BitWriter::new(), BitWriter::new());
    let from_shared = view.encode_shared(pass, &mut cache, &mut shared);
    let from_own = view.encode_own(pass, &mut cache, &mut own, &mut vec![], &mut vec![]);
    assert_eq!(from_shared, Some(from_own));
    assert_eq!(from_own.entities, 41);
    assert_eq!(shared.take(), own.take());
}

#[test]
fn a_client_that_hops_between_rooms_makes_no_bookkeeping_grow() {
    let (mut archive, _) = archive(0);
    let rooms = [archive.add_partition(), archive.add_partition()];
    for room in rooms {
        for _ in 0..1_000 {
            archive.spawn(Tick(1), room, Meta::default(), 1.0);
        }
    }
    let mut view = View::new(Tick(5));
    for hop in 0..100 {
        let tick = Tick(6 + hop);
        view.set_partitions(&archive, tick, &[rooms[hop as usize % 2]]);
        encode(&mut view, &archive, tick, hop as u16);
    }
    assert!(view.exceptions() <= 2_000);
    assert!(view.backlog.len() <= 1_000);
    assert!(view.active.len() <= 4_000);
}
