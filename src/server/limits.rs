//! stub
use super::ServerConfig;
use crate::identity::Identity;
use crate::protocol::handshake::DisconnectReason;
use crate::protocol::limits::Class;
use bevy::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
#[derive(Component)]
pub struct Limits;
#[derive(Clone, Debug, Default)]
pub struct LimitSettings;
#[derive(EntityEvent, Clone, Debug)]
pub struct LimitBroken {
    pub entity: Entity,
}
pub struct Answer;
impl Limits {
    pub fn new(_: &ServerConfig, _: Duration) -> Self {
        Self
    }
    pub fn take(&mut self, _: Duration, _: Class, _: usize) -> Result<(), Answer> {
        Ok(())
    }
}
pub fn answer(_: &mut World, _: Entity, _: Answer, _: Class) -> Result<(), DisconnectReason> {
    Ok(())
}
#[derive(Resource)]
pub struct Doors;
impl Doors {
    pub fn new(_: &ServerConfig) -> Self {
        Self
    }
    pub fn knock(&mut self, _: Duration, _: IpAddr) -> Result<(), DisconnectReason> {
        Ok(())
    }
    pub fn heard(&mut self, _: IpAddr) {}
    pub fn enter(&mut self, _: IpAddr) -> Result<(), DisconnectReason> {
        Ok(())
    }
    pub fn leave(&mut self, _: IpAddr) {}
    pub fn check_ban(
        &mut self,
        _: Duration,
        _: &Identity,
        _: Option<SocketAddr>,
    ) -> Result<(), DisconnectReason> {
        Ok(())
    }
    pub fn ban(
        &mut self,
        _: Duration,
        _: Option<&Identity>,
        _: Option<SocketAddr>,
        _: &str,
        _: Duration,
    ) {
    }
}
