//! What a device tells its relay about itself.

/// What a device is. The SDK fills in the keep-alive.
///
/// ```
/// let registration = device_sdk::Registration::new().name("Copy room").model("Example 7000").location("2nd floor");
/// ```
pub use relay_core::store::{App, Description as Registration};
