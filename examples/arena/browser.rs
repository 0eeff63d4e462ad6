//! The arena in a browser. `cargo xtask web` builds it, with its page, into `target/web`.
//!
//! The page decides where to play: at the server that it came from, unless its address says `?server=wss://…`. `?name=`
//! is what others see.

#[cfg(target_family = "wasm")]
mod game;
#[cfg(target_family = "wasm")]
mod map;
#[cfg(target_family = "wasm")]
mod page;
#[cfg(target_family = "wasm")]
mod view;

#[cfg(target_family = "wasm")]
fn main() {
    use bevy::prelude::*;
    use bevy_tandem::prelude::*;

    let visit = page::Visit::of_this_page();
    App::new()
        .add_plugins((
            DefaultPlugins.set(view::window()).set(view::assets()),
            page::PagePlugin,
            TandemClientPlugins::connect(&visit.server).named(visit.name),
            game::game,
            view::ViewPlugin::default(),
        ))
        .run();
}

#[cfg(not(target_family = "wasm"))]
fn main() {
    eprintln!("error: this is for browsers; `cargo xtask web` builds it");
    std::process::exit(2);
}
