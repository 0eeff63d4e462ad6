//! stub
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Inputs,
    Messages,
    Chat,
}
