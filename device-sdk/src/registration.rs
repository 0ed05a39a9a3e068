//! What a device tells its relay about itself.

/// What a device is. The SDK fills in the keep-alive.
///
/// ```
/// let registration = device_sdk::Registration::new().name("Copy room").model("Example 7000").location("2nd floor");
/// ```
pub use relay_core::store::Description as Registration;

/// A line of the app table in a registration. Apps that are given to [`Builder::app`](crate::Builder::app) are put there
/// by themselves.
pub use relay_core::store::App as AppEntry;
