//! An address book from a service's side: reads it, edits it without losing what others edit, and watches it. The
//! devices of the account that have the app `address` get every change.
//!
//! ```sh
//! address-book --relay https://relay.example --key KEY --account acme --book staff show
//! address-book … set email Ann ann@acme.example
//! address-book … remove email Ann
//! address-book … put staff.xml
//! address-book … watch --every 5
//! ```

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};
use examples::Failure;
use server_sdk::{
    AddressBook, Client,
    book::{Book, BookDocument, InvalidBook},
    ids::{AccountId, BookId},
};

#[derive(Debug, Parser)]
#[command(about = "Reads, edits and watches an address book")]
struct Options {
    /// The relay's URL.
    #[arg(long, env = "RELAY_URL", default_value = "http://127.0.0.1:8080")]
    relay: String,
    /// The service's key.
    #[arg(long, env = "RELAY_KEY", hide_env_values = true)]
    key: String,
    /// The account that the book belongs to.
    #[arg(long, env = "RELAY_ACCOUNT")]
    account: AccountId,
    /// The book's name.
    #[arg(long, default_value = "addresses")]
    book: BookId,
    /// Let the key travel unencrypted to another machine.
    #[arg(long, env = "RELAY_ALLOW_PLAINTEXT")]
    allow_plaintext: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows all entries.
    Show,
    /// Adds or changes an entry.
    Set {
        /// Its kind, such as email.
        kind: String,
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Removes an entry.
    Remove {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// Puts what is in a file in place of all entries.
    Put {
        /// An `<AddressBook>` in XML.
        file: PathBuf,
    },
    /// Tells what changes, until it is stopped.
    Watch {
        /// Seconds from one look to the next.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        every: u64,
    },
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let mut builder = Client::builder(&options.relay, &options.key);
    if options.allow_plaintext {
        builder = builder.allow_plaintext();
    }
    let book = builder.build()?.address_book(options.account.as_str(), options.book.as_str())?;
    match options.command {
        Command::Show => {
            let now = book.read().await?;
            println!("version {}", now.version);
            now.content.entries().for_each(|(kind, name, value)| println!("{kind} {name} {value}"));
        }
        Command::Set { kind, name, value } => {
            edit(&book, |content| content.set(&kind, &name, &value).map(drop)).await?;
        }
        Command::Remove { kind, name } => {
            edit(&book, |content| {
                content.remove(&kind, &name);
                Ok(())
            })
            .await?;
        }
        Command::Put { file } => {
            let wanted = BookDocument::parse(&std::fs::read(file)?)?.content;
            edit(&book, |content| {
                *content = wanted.clone();
                Ok(())
            })
            .await?;
        }
        Command::Watch { every } => watch(book, Duration::from_secs(every)).await?,
    }
    Ok(())
}

/// Reads, changes and puts back, anew if somebody else was faster: so nobody's change is lost.
async fn edit(
    book: &AddressBook,
    change: impl FnMut(&mut Book) -> Result<(), InvalidBook>,
) -> Result<(), Failure> {
    let now = book.edit(change).await?;
    println!("version {} with {} entries", now.version, now.content.len());
    Ok(())
}

async fn watch(book: AddressBook, every: Duration) -> Result<(), Failure> {
    let mut watch = book.watch(every);
    let mut before = watch.next().await?;
    println!("version {} with {} entries", before.version, before.content.len());
    loop {
        let now = match watch.next().await {
            Ok(now) => now,
            // The next look may succeed: the relay may be restarting.
            Err(error) => {
                eprintln!("not seen: {error}");
                tokio::time::sleep(every).await;
                continue;
            }
        };
        println!("version {}", now.version);
        for (kind, name, value) in now.content.entries() {
            match before.content.get(kind, name) {
                None => println!("+ {kind} {name} {value}"),
                Some(old) if old != value => println!("~ {kind} {name} {value}"),
                Some(_) => {}
            }
        }
        for (kind, name, _) in before.content.entries() {
            if now.content.get(kind, name).is_none() {
                println!("- {kind} {name}");
            }
        }
        before = now;
    }
}
