//! What is written on the screen: scores, news, health, and how the connection is.

use bevy::prelude::*;
use bevy_tandem::prelude::*;

use super::{Art, palette};
use crate::game::{self, Destroyed, Health, Respawn, Score, Ship};

/// Rows of the score table.
const ROWS: usize = 8;
/// Lines of news, and how long each stays, in seconds.
const NEWS_LINES: usize = 5;
const NEWS_SECONDS: f32 = 6.0;
const CONTROLS: &str = match cfg!(target_family = "wasm") {
    true => "WASD steer    mouse aim    left button or space fire    F1 network",
    false => "WASD steer    mouse aim    left button or space fire    F1 network    Esc quit",
};
/// What helps when all is over.
const WAY_OUT: &str = match cfg!(target_family = "wasm") {
    true => "reload the page to try again",
    false => "Esc quits",
};

pub fn plugin(app: &mut App) {
    app.init_resource::<News>()
        .add_systems(Startup, build_hud)
        .add_systems(
            Update,
            (
                show_scores,
                (read_news, show_news).chain(),
                show_health,
                show_notice,
            ),
        );
}

#[derive(Component)]
struct ScoreRow(usize);
#[derive(Component)]
struct NewsLine(usize);
#[derive(Component)]
struct HealthFill;
#[derive(Component)]
struct HealthText;
#[derive(Component)]
struct NoticePanel;
#[derive(Component)]
struct NoticeTitle;
#[derive(Component)]
struct NoticeDetail;

/// The latest first.
#[derive(Resource, Default)]
struct News(Vec<Item>);

struct Item {
    text: String,
    color: Color,
    /// Seconds since the start.
    at: f32,
}

fn build_hud(art: Res<Art>, mut commands: Commands) {
    commands.spawn((
        ImageNode::new(art.vignette.clone()),
        Node {
            position_type: PositionType::Absolute,
            width: percent(100),
            height: percent(100),
            ..default()
        },
        GlobalZIndex(-1),
    ));

    let mut table = commands.spawn(panel(Node {
        position_type: PositionType::Absolute,
        top: px(14),
        left: px(14),
        flex_direction: FlexDirection::Column,
        row_gap: px(3),
        ..padded()
    }));
    table.with_children(|table| {
        table.spawn(text(
            &score_line("PLAYER", "KILLS", "DEATHS"),
            12.0,
            palette::DIM_TEXT,
        ));
        for row in 0..ROWS {
            table.spawn((ScoreRow(row), text("", 14.0, palette::TEXT)));
        }
    });

    let mut news = commands.spawn(Node {
        position_type: PositionType::Absolute,
        top: px(14),
        right: px(18),
        flex_direction: FlexDirection::Column,
        align_items: AlignItems::End,
        row_gap: px(4),
        ..default()
    });
    news.with_children(|news| {
        for line in 0..NEWS_LINES {
            news.spawn((NewsLine(line), text("", 14.0, palette::TEXT)));
        }
    });

    let mut health = commands.spawn(panel(Node {
        position_type: PositionType::Absolute,
        bottom: px(44),
        left: px(14),
        width: px(230),
        flex_direction: FlexDirection::Column,
        row_gap: px(6),
        ..padded()
    }));
    health.with_children(|health| {
        health.spawn((HealthText, text("HULL", 13.0, palette::TEXT)));
        let trough = Node {
            width: percent(100),
            height: px(10),
            border_radius: BorderRadius::all(px(5)),
            ..default()
        };
        health
            .spawn((
                trough.clone(),
                BackgroundColor(Color::srgba(0.0, 0.0, 0.0, 0.5)),
            ))
            .with_child((HealthFill, trough, BackgroundColor(palette::GOOD)));
    });

    commands.spawn((
        text(CONTROLS, 13.0, palette::DIM_TEXT),
        Node {
            position_type: PositionType::Absolute,
            bottom: px(14),
            left: px(18),
            ..default()
        },
        TextShadow::default(),
    ));

    let mut notice = commands.spawn(Node {
        position_type: PositionType::Absolute,
        width: percent(100),
        height: percent(100),
        justify_content: JustifyContent::Center,
        align_items: AlignItems::Start,
        // Above the middle, where the player's own ship is.
        padding: UiRect::top(percent(9)),
        ..default()
    });
    notice.with_children(|notice| {
        let column = Node {
            flex_direction: FlexDirection::Column,
            align_items: AlignItems::Center,
            row_gap: px(8),
            padding: UiRect::axes(px(36), px(20)),
            border: UiRect::all(px(1)),
            border_radius: BorderRadius::all(px(8)),
            ..default()
        };
        notice
            .spawn((NoticePanel, panel(column)))
            .with_children(|column| {
                column.spawn((NoticeTitle, text("", 30.0, palette::TEXT)));
                column.spawn((NoticeDetail, text("", 16.0, palette::DIM_TEXT)));
            });
    });
}

fn show_scores(
    players: Query<(&Ship, &Score, Has<Owned>)>,
    mut rows: Query<(&ScoreRow, &mut Text, &mut TextColor, &mut Node)>,
) {
    let mut players: Vec<_> = players.iter().collect();
    players.sort_by_key(|(ship, score, _)| {
        (std::cmp::Reverse(score.kills), score.deaths, ship.number)
    });
    // Whoever looks wants to see themselves, however they do.
    if let Some(mine) = players.iter().position(|(.., is_mine)| *is_mine)
        && mine >= ROWS
    {
        players.swap(mine, ROWS - 1);
    }
    for (row, mut text, mut color, mut node) in &mut rows {
        let (line, shade, display) = match players.get(row.0) {
            None => (String::new(), palette::TEXT, Display::None),
            Some((ship, score, is_mine)) => {
                let mark = if *is_mine { "> " } else { "  " };
                let name: String = ship.name.chars().take(14).collect();
                let line = score_line(
                    &format!("{mark}{name}"),
                    &score.kills.to_string(),
                    &score.deaths.to_string(),
                );
                (line, palette::player(ship.number), Display::Flex)
            }
        };
        text.set_if_neq(Text(line));
        color.set_if_neq(TextColor(shade));
        if node.display != display {
            node.display = display;
        }
    }
}

fn read_news(
    mut destroyed: MessageReader<FromServer<Destroyed>>,
    players: Query<(&Ship, Has<Owned>)>,
    time: Res<Time>,
    mut news: ResMut<News>,
) {
    for FromServer(event) in destroyed.read() {
        let player = |number| players.iter().find(|(ship, _)| ship.number == number);
        let (Some(shooter), Some(victim)) = (player(event.shooter), player(event.victim)) else {
            continue;
        };
        let color = match (shooter.1, victim.1) {
            (true, _) => palette::GOOD,
            (_, true) => palette::WARNING,
            _ => palette::TEXT,
        };
        let item = Item {
            text: format!("{} destroyed {}", shooter.0.name, victim.0.name),
            color,
            at: time.elapsed_secs(),
        };
        news.0.insert(0, item);
        news.0.truncate(NEWS_LINES);
    }
}

fn show_news(
    news: Res<News>,
    time: Res<Time>,
    mut lines: Query<(&NewsLine, &mut Text, &mut TextColor)>,
) {
    for (line, mut text, mut color) in &mut lines {
        let Some(item) = news.0.get(line.0) else {
            continue;
        };
        let left = NEWS_SECONDS - (time.elapsed_secs() - item.at);
        text.set_if_neq(Text(item.text.clone()));
        color.set_if_neq(TextColor(item.color.with_alpha(left.clamp(0.0, 1.0))));
    }
}

fn show_health(
    mine: Query<&Health, (With<Ship>, With<Owned>)>,
    mut fill: Single<(&mut Node, &mut BackgroundColor), With<HealthFill>>,
    mut label: Single<&mut Text, With<HealthText>>,
) {
    let health = mine.iter().next().map_or(0, |health| health.0);
    let share = f32::from(health) / f32::from(game::FULL_HEALTH);
    fill.0.width = percent(share * 100.0);
    fill.1.0 = if share <= 0.4 {
        palette::WARNING
    } else {
        palette::GOOD
    };
    label.set_if_neq(Text(format!("HULL  {health:>3}")));
}

/// The words in the middle of the screen: why the player cannot play just now.
fn show_notice(
    connection: Res<Connection>,
    mine: Query<&Respawn, (With<Ship>, With<Owned>)>,
    tick: Res<CurrentTick>,
    mut panel: Single<&mut Visibility, With<NoticePanel>>,
    mut title: Single<&mut Text, (With<NoticeTitle>, Without<NoticeDetail>)>,
    mut detail: Single<&mut Text, (With<NoticeDetail>, Without<NoticeTitle>)>,
) {
    let notice = match (connection.state(), mine.iter().next()) {
        (ConnectionState::Connecting, _) => Some((
            "Connecting...".to_string(),
            "asking the server to let us in".to_string(),
        )),
        (ConnectionState::Reconnecting, _) => Some((
            "Connection lost".to_string(),
            format!("trying to come back, attempt {}", connection.attempt()),
        )),
        (ConnectionState::Disconnected | ConnectionState::Failed, _) => {
            let reason = connection
                .reason()
                .map_or("not connected".to_string(), ToString::to_string);
            Some(("Disconnected".to_string(), format!("{reason}    {WAY_OUT}")))
        }
        (ConnectionState::Connected, None) => {
            Some(("Connected".to_string(), "waiting for a ship".to_string()))
        }
        (ConnectionState::Connected, Some(respawn)) => {
            let seconds = respawn.at.distance_from(tick.0) as f32 / 60.0;
            (seconds > 0.0).then(|| {
                (
                    "Destroyed".to_string(),
                    format!("a new ship in {seconds:.1} s"),
                )
            })
        }
    };
    panel.set_if_neq(match notice {
        Some(_) => Visibility::Inherited,
        None => Visibility::Hidden,
    });
    if let Some((heading, line)) = notice {
        title.set_if_neq(Text(heading));
        detail.set_if_neq(Text(line));
    }
}

fn score_line(name: &str, kills: &str, deaths: &str) -> String {
    format!("{name:<17}{kills:>5}{deaths:>7}")
}

/// A dark plate with a thin rim.
pub fn panel(node: Node) -> impl Bundle {
    (
        node,
        BackgroundColor(palette::PANEL),
        BorderColor::all(palette::PANEL_EDGE),
    )
}

/// The inner space and rim that panels share.
pub fn padded() -> Node {
    Node {
        padding: UiRect::axes(px(12), px(9)),
        border: UiRect::all(px(1)),
        border_radius: BorderRadius::all(px(6)),
        ..default()
    }
}

/// A line of text.
pub fn text(line: &str, size: f32, color: Color) -> impl Bundle {
    (
        Text::new(line),
        TextFont::from_font_size(size),
        TextColor(color),
    )
}
