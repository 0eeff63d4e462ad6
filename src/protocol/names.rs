//! stub
#[derive(Debug, thiserror::Error)]
#[error("bad name")]
pub struct NameError;
pub fn validate_name(name: &str) -> Result<(), NameError> {
    if (1..=32).contains(&name.chars().count())
        && !name.trim().is_empty()
        && !name.chars().any(char::is_control)
    {
        Ok(())
    } else {
        Err(NameError)
    }
}
pub fn validate_version(name: &str) -> Result<(), NameError> {
    if name.len() <= 64 {
        Ok(())
    } else {
        Err(NameError)
    }
}
