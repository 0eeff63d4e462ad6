//! The page around the arena: what it asks for, and what it is told.

use std::panic;

use bevy::prelude::*;
use bevy_tandem::client::{ConnectionChanged, ResumeFinished, ResumeOutcome};
use bevy_tandem::prelude::*;
use serde_json::json;
use wasm_bindgen::JsValue;
use web_sys::{UrlSearchParams, Window};

use crate::game::{Health, Ship};

/// Tells the page how it goes, as `window.tandem`: for tests, and for whoever looks into the browser's console.
pub struct PagePlugin;

impl Plugin for PagePlugin {
    fn build(&self, app: &mut App) {
        tell_of_panics();
        app.init_resource::<Tally>()
            .add_systems(Last, tell_page)
            .add_observer(count_joins)
            .add_observer(count_returns)
            .add_observer(count_losses);
    }
}

/// What the address of the page says.
pub struct Visit {
    /// `?server=`, or the server that the page came from.
    pub server: String,
    /// `?name=`, or "guest".
    pub name: String,
}

impl Visit {
    pub fn of_this_page() -> Self {
        let query = window()
            .and_then(|window| window.location().search().ok())
            .and_then(|query| UrlSearchParams::new_with_str(&query).ok());
        let get = |key| query.as_ref()?.get(key).filter(|value| !value.is_empty());
        Self {
            server: get("server").unwrap_or_else(home),
            name: get("name").unwrap_or_else(|| "guest".into()),
        }
    }
}

/// The WebSocket at the address of the page.
fn home() -> String {
    let location = window().map(|window| window.location());
    let part =
        |part: Option<Result<String, JsValue>>| part.and_then(Result::ok).unwrap_or_default();
    let host = part(location.as_ref().map(web_sys::Location::host));
    match part(location.as_ref().map(web_sys::Location::protocol)).as_str() {
        "https:" => format!("wss://{host}/"),
        _ => format!("ws://{host}/"),
    }
}

fn window() -> Option<Window> {
    web_sys::window()
}

/// Shows in the page what ends the game, and not only in the browser's console.
fn tell_of_panics() {
    let log = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        log(info);
        let text = info.payload_as_str().unwrap_or("the game has failed");
        let element = window()
            .and_then(|window| window.document())
            .and_then(|document| document.get_element_by_id("message"));
        if let Some(element) = element {
            element.set_text_content(Some(text));
            let _ = element.remove_attribute("hidden");
        }
    }));
}

/// What has happened to the connection so far.
#[derive(Resource, Default)]
struct Tally {
    joined: u32,
    lost: u32,
    resumed: u32,
    resynced: u32,
    rejected: u32,
    frames: u64,
    /// Seconds until the page is told again.
    rest: f32,
}

/// Times a second that the page is told.
const TELLS_PER_SECOND: f32 = 20.0;

fn count_joins(_: On<Connected>, mut tally: ResMut<Tally>) {
    tally.joined += 1;
}

fn count_losses(changed: On<ConnectionChanged>, mut tally: ResMut<Tally>) {
    tally.lost += u32::from(changed.to == ConnectionState::Reconnecting);
}

fn count_returns(finished: On<ResumeFinished>, mut tally: ResMut<Tally>) {
    match finished.outcome {
        ResumeOutcome::Resumed => tally.resumed += 1,
        ResumeOutcome::Resynced { .. } => tally.resynced += 1,
        ResumeOutcome::Rejected(_) => tally.rejected += 1,
    }
}

fn tell_page(
    connection: Res<Connection>,
    stats: Res<ClientStats>,
    ships: Query<(Entity, &Ship, &Health, &Transform, Has<Owned>)>,
    time: Res<Time<Real>>,
    mut tally: ResMut<Tally>,
) {
    tally.frames += 1;
    tally.rest -= time.delta_secs();
    if tally.rest > 0.0 {
        return;
    }
    tally.rest = 1.0 / TELLS_PER_SECOND;

    let describe =
        |(entity, ship, health, transform, _): (Entity, &Ship, &Health, &Transform, bool)| {
            json!({
                // Changes if the ship is taken away and comes back.
                "entity": entity.to_string(),
                "number": ship.number,
                "name": ship.name,
                "health": health.0,
                "x": transform.translation.x,
                "y": transform.translation.y,
            })
        };
    let (own, others): (Vec<_>, Vec<_>) = ships.iter().partition(|(.., is_own)| *is_own);
    let status = json!({
        "state": format!("{:?}", connection.state()),
        "session": connection.session().map(|session| session.0),
        "reason": connection.reason().map(ToString::to_string),
        "joined": tally.joined,
        "lost": tally.lost,
        "resumed": tally.resumed,
        "resynced": tally.resynced,
        "rejected": tally.rejected,
        "frames": tally.frames,
        "rtt_ms": stats.rtt.as_secs_f64() * 1e3,
        "bytes_in": stats.transport.bytes_in,
        "bytes_out": stats.transport.bytes_out,
        "own": own.into_iter().map(describe).next(),
        "others": others.into_iter().map(describe).collect::<Vec<_>>(),
    });
    if let (Some(window), Ok(status)) = (window(), js_sys::JSON::parse(&status.to_string())) {
        // Fails only where a page forbids it.
        let _ = js_sys::Reflect::set(&window, &JsValue::from_str("tandem"), &status);
    }
}
