//! What it costs to quantise, write and read transforms, per transform.
//!
//!     cargo bench --bench quantize

use bevy::math::{Quat, Vec3};
use bevy::transform::components::Transform;
use bevy_tandem::wire::bits::{BitReader, BitWriter};
use bevy_tandem::wire::quantize::{
    Field, Quantize, TransformCodec, read_delta, read_full, write_delta, write_full,
};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// Transforms in each batch: enough to outlast the branch predictor's memory of them.
const COUNT: usize = 1_024;

/// The default codec, and the one for 2D.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Spatial,
    Flat,
}

const SHAPES: [Shape; 2] = [Shape::Spatial, Shape::Flat];

/// Moving bodies at two moments, quantised.
struct Scene {
    codec: TransformCodec,
    fields: Vec<Field>,
    before: Vec<Transform>,
    before_words: Vec<u32>,
    after_words: Vec<u32>,
}

impl Scene {
    fn new(shape: Shape) -> Self {
        let codec = match shape {
            Shape::Spatial => TransformCodec::default(),
            Shape::Flat => TransformCodec::flat(4_096.0, 1.0 / 64.0),
        };
        let mut random = fastrand::Rng::with_seed(1);
        let mut vector =
            |size: f32| Vec3::from_array([(); 3].map(|()| (random.f32() - 0.5) * size));
        let mut before = Vec::new();
        let mut after = Vec::new();
        for _ in 0..COUNT {
            let rotation = Quat::from_scaled_axis(vector(6.0));
            let start = Transform::from_translation(vector(2_000.0)).with_rotation(rotation);
            before.push(start);
            after.push(Transform {
                translation: start.translation + vector(1.0),
                rotation: Quat::from_scaled_axis(vector(0.2)) * rotation,
                scale: start.scale,
            });
        }
        let words_of = |transforms: &[Transform]| {
            let mut words = vec![0; COUNT * codec.word_count()];
            let chunks = words.chunks_mut(codec.word_count());
            for (transform, words) in transforms.iter().zip(chunks) {
                codec.quantize(transform, words);
            }
            words
        };
        Self {
            before_words: words_of(&before),
            after_words: words_of(&after),
            fields: codec.fields(),
            before,
            codec,
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (&[u32], &[u32])> {
        let width = self.fields.len();
        self.before_words
            .chunks(width)
            .zip(self.after_words.chunks(width))
    }
}

#[divan::bench(args = SHAPES)]
fn quantize(bencher: Bencher, shape: Shape) {
    let scene = Scene::new(shape);
    let mut words = vec![0; scene.fields.len()];
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        for transform in &scene.before {
            scene.codec.quantize(black_box(transform), &mut words);
            black_box(&words);
        }
    });
}

#[divan::bench(args = SHAPES)]
fn dequantize(bencher: Bencher, shape: Shape) {
    let scene = Scene::new(shape);
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        for (words, _) in scene.pairs() {
            black_box(scene.codec.dequantize(black_box(words)));
        }
    });
}

#[divan::bench(args = SHAPES)]
fn compare(bencher: Bencher, shape: Shape) {
    let scene = Scene::new(shape);
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        for (before, after) in scene.pairs() {
            black_box(scene.codec.distance(black_box(before), black_box(after)));
        }
    });
}

#[divan::bench(args = SHAPES)]
fn write_whole(bencher: Bencher, shape: Shape) {
    let scene = Scene::new(shape);
    let mut out = BitWriter::new();
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        out.clear();
        for (_, words) in scene.pairs() {
            write_full(&scene.fields, words, &mut out);
        }
        black_box(out.finish().len())
    });
}

#[divan::bench(args = SHAPES)]
fn write_difference(bencher: Bencher, shape: Shape) {
    let scene = Scene::new(shape);
    let mut out = BitWriter::new();
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        out.clear();
        for (base, words) in scene.pairs() {
            write_delta(&scene.fields, base, words, &mut out);
        }
        black_box(out.finish().len())
    });
}

#[divan::bench(args = SHAPES)]
fn read_whole(bencher: Bencher, shape: Shape) {
    let scene = Scene::new(shape);
    let mut out = BitWriter::new();
    for (_, words) in scene.pairs() {
        write_full(&scene.fields, words, &mut out);
    }
    let bytes = out.finish();
    let mut words = vec![0; scene.fields.len()];
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        let mut input = BitReader::new(bytes);
        for _ in 0..COUNT {
            read_full(&scene.fields, &mut words, &mut input).expect("written above");
            black_box(&words);
        }
    });
}

#[divan::bench(args = SHAPES)]
fn read_difference(bencher: Bencher, shape: Shape) {
    let scene = Scene::new(shape);
    let mut out = BitWriter::new();
    for (base, words) in scene.pairs() {
        write_delta(&scene.fields, base, words, &mut out);
    }
    let bytes = out.finish();
    let mut words = vec![0; scene.fields.len()];
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        let mut input = BitReader::new(bytes);
        for (base, _) in scene.pairs() {
            read_delta(&scene.fields, base, &mut words, &mut input).expect("written above");
            black_box(&words);
        }
    });
}

/// Copying an encoded block to one more client, at an odd bit.
#[divan::bench]
fn append_1000_bytes(bencher: Bencher) {
    let mut block = BitWriter::new();
    block.write_bytes(&[0xA5; 1_000]);
    let block = block.take();
    let mut out = BitWriter::new();
    bencher.bench_local(|| {
        out.clear();
        out.write_bits(5, 3);
        out.append(black_box(&block));
        black_box(out.finish().len())
    });
}
