//! F1: what the network does to the game.

use bevy::prelude::*;
use bevy_tandem::prelude::*;

use super::hud::{padded, panel, text};
use super::palette;

/// Measurements in a strip, and how often there is one: together the last nine seconds.
const BARS: usize = 90;
const SAMPLE_SECONDS: f32 = 0.1;
/// Size of a strip in pixels.
const STRIP_HEIGHT: f32 = 44.0;
const BAR_WIDTH: f32 = 3.5;

pub fn plugin(app: &mut App) {
    app.init_resource::<NetGraph>()
        .init_resource::<History>()
        .add_systems(Startup, build_graph)
        .add_systems(
            Update,
            (toggle, show_or_hide, (measure, draw).chain()).chain(),
        );
}

/// Whether the net graph is on the screen.
#[derive(Resource, Default)]
pub struct NetGraph {
    pub shown: bool,
}

#[derive(Component)]
struct GraphPanel;
#[derive(Component)]
struct Readout;
#[derive(Component)]
struct StripLabel(Strip);
#[derive(Component)]
struct Bar {
    strip: Strip,
    /// 0 is the oldest.
    index: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Strip {
    Rtt,
    Down,
}

/// The numbers of each tenth of a second, and what they are differences to.
#[derive(Resource, Default)]
struct History {
    samples: Vec<Sample>,
    last: Totals,
    /// A second ago, for rates that are read as numbers.
    second_ago: Totals,
    rates: Totals,
    since_sample: f32,
    since_second: f32,
}

#[derive(Clone, Copy, Default)]
struct Sample {
    rtt_ms: f32,
    bytes_down: f32,
    reconciled: bool,
}

#[derive(Clone, Copy, Default)]
struct Totals {
    bytes_in: u64,
    bytes_out: u64,
    datagrams_in: u64,
    datagrams_out: u64,
    reconciliations: u64,
    frames: u64,
    starved_frames: u64,
}

impl Totals {
    fn of(stats: &ClientStats) -> Self {
        Self {
            bytes_in: stats.transport.bytes_in,
            bytes_out: stats.transport.bytes_out,
            datagrams_in: stats.transport.datagrams_in,
            datagrams_out: stats.transport.datagrams_out,
            reconciliations: stats.reconciliations,
            frames: stats.frames,
            starved_frames: stats.starved_frames,
        }
    }

    /// What was added since `earlier`; zero after a reconnect started the counts again.
    fn since(&self, earlier: &Self) -> Self {
        Self {
            bytes_in: self.bytes_in.saturating_sub(earlier.bytes_in),
            bytes_out: self.bytes_out.saturating_sub(earlier.bytes_out),
            datagrams_in: self.datagrams_in.saturating_sub(earlier.datagrams_in),
            datagrams_out: self.datagrams_out.saturating_sub(earlier.datagrams_out),
            reconciliations: self.reconciliations.saturating_sub(earlier.reconciliations),
            frames: self.frames.saturating_sub(earlier.frames),
            starved_frames: self.starved_frames.saturating_sub(earlier.starved_frames),
        }
    }
}

fn build_graph(mut commands: Commands) {
    let mut graph = commands.spawn((
        GraphPanel,
        Visibility::Hidden,
        panel(Node {
            position_type: PositionType::Absolute,
            bottom: px(14),
            right: px(14),
            flex_direction: FlexDirection::Column,
            row_gap: px(5),
            ..padded()
        }),
    ));
    graph.with_children(|graph| {
        graph.spawn(text("NETWORK", 12.0, palette::DIM_TEXT));
        graph.spawn((Readout, text("", 13.0, palette::TEXT)));
        for strip in [Strip::Rtt, Strip::Down] {
            graph.spawn((StripLabel(strip), text("", 11.0, palette::DIM_TEXT)));
            let frame = Node {
                height: px(STRIP_HEIGHT),
                width: px(BAR_WIDTH * BARS as f32),
                align_items: AlignItems::End,
                ..default()
            };
            graph
                .spawn((frame, BackgroundColor(Color::srgba(0.0, 0.0, 0.0, 0.45))))
                .with_children(|frame| {
                    for index in 0..BARS {
                        let bar = Node {
                            width: px(BAR_WIDTH),
                            height: px(0),
                            ..default()
                        };
                        frame.spawn((Bar { strip, index }, bar, BackgroundColor(palette::ACCENT)));
                    }
                });
        }
    });
}

fn toggle(keyboard: Res<ButtonInput<KeyCode>>, mut graph: ResMut<NetGraph>) {
    if keyboard.just_pressed(KeyCode::F1) {
        graph.shown = !graph.shown;
    }
}

fn show_or_hide(graph: Res<NetGraph>, mut panel: Single<&mut Visibility, With<GraphPanel>>) {
    panel.set_if_neq(match graph.shown {
        true => Visibility::Inherited,
        false => Visibility::Hidden,
    });
}

fn measure(stats: Res<ClientStats>, time: Res<Time<Real>>, mut history: ResMut<History>) {
    let now = Totals::of(&stats);
    history.since_second += time.delta_secs();
    if history.since_second >= 1.0 {
        history.since_second = 0.0;
        history.rates = now.since(&history.second_ago);
        history.second_ago = now;
    }

    history.since_sample += time.delta_secs();
    if history.since_sample < SAMPLE_SECONDS {
        return;
    }
    let change = now.since(&history.last);
    let sample = Sample {
        rtt_ms: stats.rtt.as_secs_f32() * 1e3,
        bytes_down: change.bytes_in as f32 / history.since_sample,
        reconciled: change.reconciliations > 0,
    };
    history.since_sample = 0.0;
    history.last = now;
    if history.samples.len() == BARS {
        history.samples.remove(0);
    }
    history.samples.push(sample);
}

fn draw(
    graph: Res<NetGraph>,
    stats: Res<ClientStats>,
    history: Res<History>,
    mut readout: Single<&mut Text, (With<Readout>, Without<StripLabel>)>,
    mut labels: Query<(&StripLabel, &mut Text), Without<Readout>>,
    mut bars: Query<(&Bar, &mut Node, &mut BackgroundColor)>,
) {
    if !graph.shown {
        return;
    }
    readout.set_if_neq(Text(describe(&stats, &history.rates)));

    let top = |value: fn(&Sample) -> f32, least: f32| {
        history.samples.iter().map(value).fold(least, f32::max)
    };
    let top_rtt = top(|sample| sample.rtt_ms, 20.0);
    let top_down = top(|sample| sample.bytes_down, 1_000.0);
    for (label, mut text) in &mut labels {
        text.set_if_neq(Text(match label.0 {
            Strip::Rtt => format!("rtt, up to {top_rtt:.0} ms (red: reconciled)"),
            Strip::Down => format!("down, up to {:.1} kB/s", top_down / 1e3),
        }));
    }
    let missing = BARS - history.samples.len();
    for (bar, mut node, mut color) in &mut bars {
        let sample = bar
            .index
            .checked_sub(missing)
            .and_then(|index| history.samples.get(index));
        let Some(sample) = sample else {
            continue;
        };
        let (share, shade) = match bar.strip {
            Strip::Rtt if sample.reconciled => (sample.rtt_ms / top_rtt, palette::WARNING),
            Strip::Rtt => (sample.rtt_ms / top_rtt, palette::ACCENT),
            Strip::Down => (sample.bytes_down / top_down, palette::SECOND),
        };
        node.height = px((share * STRIP_HEIGHT).max(1.0));
        color.set_if_neq(BackgroundColor(shade));
    }
}

fn describe(stats: &ClientStats, rates: &Totals) -> String {
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let starved = 100.0 * rates.starved_frames as f64 / rates.frames.max(1) as f64;
    format!(
        "rtt     {:>7.1} ms     jitter  {:>7.1} ms\n\
         loss    {:>7.1} %      margin  {:>7.1} ticks\n\
         down    {:>7.1} kB/s   packets {:>7} /s\n\
         up      {:>7.1} kB/s   packets {:>7} /s\n\
         delay   {:>7.0} ms     starved {:>7.1} %\n\
         reconc. {:>7} /s     snaps   {:>7}\n\
         error   {:>7.3} p99    largest {:>7.3} units",
        ms(stats.rtt),
        ms(stats.jitter),
        stats.loss * 100.0,
        stats.input_margin,
        rates.bytes_in as f64 / 1e3,
        rates.datagrams_in,
        rates.bytes_out as f64 / 1e3,
        rates.datagrams_out,
        ms(stats.interpolation_delay),
        starved,
        rates.reconciliations,
        stats.snaps,
        stats.prediction_error.quantile(0.99),
        stats.prediction_error.max(),
    )
}
