//! The conformance kit: the definition of what a transport promises, as cases that any transport can be put to.
//!
//! Write one file, `tests/conformance.rs`: a [`Harness`] that starts your transport, and
//!
//! ```text
//! relay_core::transport_conformance!(MyHarness);
//! ```
//!
//! which makes one test of each case, so that a failure names the rule that is broken. The cases are plain functions
//! too, for runners of your own. The in-memory transport and every transport of this workspace pass them.
//!
//! What [`TransportInfo`](crate::transport::TransportInfo) claims chooses what is asked: a transport that says `confirms` must confirm, one that says
//! `resumable` must lose nothing over a cut connection, one that does not must say `ended` on both sides. Bounds in
//! time are generous (seconds), since they are there to tell slow from never.
//!
//! Not API-stable: a new version may ask more.

#![expect(
    clippy::future_not_send,
    reason = "cases run on one thread; a push half is Send, and need not be Sync"
)]

pub mod cases;
mod harness;
mod owner;

pub use self::{
    harness::{Harness, Let, Running, connected, run, token},
    owner::{Event, Owner, PATIENCE},
};

/// Makes one `#[test]` of each case for a [`Harness`], given as an expression that makes one.
#[macro_export]
macro_rules! transport_conformance {
    ($harness:expr) => {
        $crate::transport_conformance! { @cases $harness;
            delivery: in_order_from_the_relay, in_order_from_the_device, empty_and_largest_bodies, every_kind_of_envelope,
                a_job_is_offered;
            push: the_relay_may_speak_first, while_idle, both_ways_at_once, a_burst_arrives_whole, an_empty_queue_is_no_work;
            cancel: a_dropped_push_takes_nothing, a_dropped_connect_leaves_no_session;
            backpressure: a_full_device_blocks_the_relay_within_a_bound, a_full_relay_blocks_the_device_within_a_bound;
            close: by_the_device, by_the_relay, dropped_without_close, nothing_can_be_pushed_afterwards, a_replaced_session_is_told;
            handshake: a_wrong_token_is_not_let_in, a_silent_engine_does_not_block_accept, the_deadline_holds, the_session_id_in_force_reaches_the_device;
            recovery: a_cut_while_idle, a_cut_under_way;
            session: ids_are_unique, sessions_do_not_leak, confirmations_do_not_outrun;
            channel: only_for_a_job_that_is_expected, no_room_is_not_the_end_of_a_job, a_wrong_token_opens_none, in_order_both_ways,
                a_slow_device_blocks_the_relay_within_a_bound, a_cut_is_an_error_at_both_ends, closed_by_the_device,
                closed_by_the_relay, nothing_can_be_sent_afterwards, dropped_without_close, a_dropped_open_leaves_no_channel,
                the_deadline_holds, several_do_not_mix;
        }
    };
    (@cases $harness:expr; $($module:ident: $($case:ident),+;)+) => { $(
        mod $module {
            #[allow(unused_imports, reason = "the harness may be named by a path of its own")]
            use super::*;
            $(
                #[test]
                fn $case() {
                    $crate::conformance::run(async { $crate::conformance::cases::$module::$case(&$harness).await });
                }
            )+
        }
    )+ };
}
