//! The program `relay`: runs a relay, and talks to one that runs.
#![cfg_attr(not(test), deny(clippy::unwrap_used))]

mod arguments;
mod commands;
mod failure;
mod output;
mod serve;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};

// A request is some dozens of small allocations, which another thread may free.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.json;
    let runtime = match arguments.command {
        Command::Serve(_) => tokio::runtime::Builder::new_multi_thread().enable_all().build(),
        // One call needs one thread.
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(arguments)),
        Err(error) => Err(failure::Failure::own("the program cannot start").because(error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

async fn run(arguments: Arguments) -> Result<(), failure::Failure> {
    let Arguments { command, reach, json } = arguments;
    match command {
        Command::Serve(serve) => serve::serve(serve, reach, json).await,
        command => commands::run(command, &reach, json).await,
    }
}
