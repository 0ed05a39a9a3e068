//! What a device by hand shows to be let in.

#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) id: String,
    pub(crate) token: String,
}
