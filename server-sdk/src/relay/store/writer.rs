//! The one thread that writes: requests that are there at the same time share a transaction, so one sync to disk.

use std::{path::PathBuf, thread::JoinHandle, time::Duration};

use relay_core::store::StoreError;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    folder::DataFolder,
    schema::{open, store_error},
};

/// Requests that wait for the writer. Beyond it, callers wait to be let in.
const QUEUE: usize = 1024;
/// Requests in one transaction.
const BATCH: usize = 256;
/// How long after a failed try the database is opened anew.
const REOPEN: Duration = Duration::from_secs(1);

/// A change to be made.
pub(super) trait Change: Send {
    /// Makes it, within a savepoint.
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()>;
    /// Tells who asked, once all is on disk or nothing is done.
    fn finish(self: Box<Self>, outcome: Result<(), StoreError>);
    /// Whether nobody waits for it any more.
    fn is_abandoned(&self) -> bool;
}

struct Asked<W, T> {
    work: W,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<W, T> Change for Asked<W, T>
where
    W: FnMut(&Connection) -> rusqlite::Result<T> + Send,
    T: Send,
{
    fn run(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.value = Some((self.work)(connection)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { value, reply, .. } = *self;
        let made = |()| value.ok_or_else(|| StoreError::unavailable("the change was not made"));
        // Who no longer waits does not need to know.
        let _ = reply.send(outcome.and_then(made));
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

/// The way to the writer's thread.
#[derive(Debug)]
pub(super) struct Writer {
    changes: Option<mpsc::Sender<Box<dyn Change>>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. It holds `folder`, so that nobody else gets in while it writes.
    pub(super) fn start(
        folder: DataFolder,
        path: PathBuf,
        connection: Connection,
    ) -> Result<Self, StoreError> {
        let (changes, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("relay-store".into())
            .spawn(move || {
                let _folder = folder;
                Shelf { path, connection: Some(connection), tried: None }.run(queue);
            })
            .map_err(|error| StoreError::unavailable(format!("no thread for the store: {error}")))?;
        Ok(Self { changes: Some(changes), thread: Some(thread) })
    }

    /// Has `work` done and waits until it is on disk.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        work: impl FnMut(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let stopped = || StoreError::unavailable("the store has stopped");
        let (reply, answer) = oneshot::channel();
        let change = Box::new(Asked { work, value: None, reply });
        self.changes.as_ref().ok_or_else(stopped)?.send(change).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

impl Drop for Writer {
    /// Waits until what was handed in is on disk and the database is closed, so that the folder is free.
    fn drop(&mut self) {
        self.changes = None;
        if let Some(thread) = self.thread.take() {
            // A panic in the thread was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Shelf {
    path: PathBuf,
    /// `None` after an error that leaves in doubt what is on disk.
    connection: Option<Connection>,
    tried: Option<Instant>,
}

impl Shelf {
    fn run(mut self, mut queue: mpsc::Receiver<Box<dyn Change>>) {
        while let Some(first) = queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(next) = queue.try_recv()
            {
                batch.push(next);
            }
            batch.retain(|change| !change.is_abandoned());
            if !batch.is_empty() {
                self.write(batch);
            }
        }
    }

    /// Makes all of `batch` durable together, but for those that fail alone; tells everybody.
    fn write(&mut self, mut batch: Vec<Box<dyn Change>>) {
        let outcomes = match self.ready() {
            Ok(connection) => commit(connection, &mut batch),
            Err(error) => {
                for change in batch {
                    change.finish(Err(error.clone()));
                }
                return;
            }
        };
        match outcomes {
            Ok(outcomes) => {
                for (change, outcome) in batch.into_iter().zip(outcomes) {
                    change.finish(outcome.map_err(|error| store_error(&self.path, error)));
                }
            }
            Err(error) => {
                // F15: after a failed write or sync nobody knows what is on disk. It is looked at before anything is
                // acknowledged again. A full disk (F14) is no such case: nothing was written.
                let in_doubt = !matches!(
                    &error,
                    rusqlite::Error::SqliteFailure(failure, _)
                        if matches!(failure.code, ErrorCode::DiskFull | ErrorCode::DatabaseBusy)
                );
                let error = store_error(&self.path, error);
                tracing::error!(%error, in_doubt, "the store could not write");
                if in_doubt {
                    self.connection = None;
                }
                for change in batch {
                    change.finish(Err(error.clone()));
                }
            }
        }
    }

    fn ready(&mut self) -> Result<&mut Connection, StoreError> {
        if self.connection.is_none() {
            let now = Instant::now();
            if self.tried.is_some_and(|tried| now.saturating_duration_since(tried) < REOPEN) {
                return Err(StoreError::unavailable("the database is being looked at after an error"));
            }
            self.tried = Some(now);
            // Not `create`: a database that has gone is not to be replaced by an empty one.
            if !self.path.exists() {
                return Err(StoreError::damaged(format!("{} is gone", self.path.display())));
            }
            self.connection = Some(open(&self.path)?);
            tracing::info!("the store is whole and writes again");
        }
        self.connection.as_mut().ok_or_else(|| StoreError::unavailable("the database is not open"))
    }
}

/// Each change's own outcome, once the transaction is on disk.
///
/// # Errors
/// Nothing of the batch was done, or it cannot be known.
fn commit(
    connection: &mut Connection,
    batch: &mut [Box<dyn Change>],
) -> rusqlite::Result<Vec<rusqlite::Result<()>>> {
    let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for change in batch {
        let savepoint = transaction.savepoint()?;
        match change.run(&savepoint) {
            Ok(()) => {
                savepoint.commit()?;
                outcomes.push(Ok(()));
            }
            Err(error) => {
                // Some errors, such as a full disk, end the whole transaction and take the others' changes with it.
                if savepoint.is_autocommit() {
                    return Err(error);
                }
                savepoint.finish()?;
                outcomes.push(Err(error));
            }
        }
    }
    transaction.commit()?;
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Answer = oneshot::Receiver<Result<i64, StoreError>>;

    fn ask(
        work: impl FnMut(&Connection) -> rusqlite::Result<i64> + Send + 'static,
    ) -> (Box<dyn Change>, Answer) {
        let (reply, answer) = oneshot::channel();
        (Box::new(Asked { work, value: None, reply }), answer)
    }

    fn count(connection: &Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT count(*) FROM secret", [], |row| row.get(0))
    }

    fn insert(name: &'static str) -> impl FnMut(&Connection) -> rusqlite::Result<i64> {
        move |connection| {
            connection.execute("INSERT INTO secret (name, value) VALUES (?1, zeroblob(32))", [name])?;
            count(connection)
        }
    }

    fn shelf(folder: &tempfile::TempDir) -> Shelf {
        let path = folder.path().join("relay.sqlite");
        let connection = open(&path).unwrap();
        Shelf { path, connection: Some(connection), tried: None }
    }

    #[test]
    fn a_change_that_fails_takes_nothing_of_its_batch_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = shelf(&folder);
        let half = |connection: &Connection| {
            connection.execute("INSERT INTO secret (name, value) VALUES ('half', zeroblob(32))", [])?;
            connection.execute("INSERT INTO secret (name, value) VALUES ('half', zeroblob(32))", [])?;
            Ok(0)
        };
        let (changes, answers): (Vec<_>, Vec<_>) =
            [ask(insert("a")), ask(half), ask(insert("b"))].into_iter().unzip();
        shelf.write(changes);
        let outcomes: Vec<_> =
            answers.into_iter().map(|mut answer| answer.try_recv().unwrap().ok()).collect();
        assert_eq!(outcomes, [Some(1), None, Some(2)]);
        assert_eq!(count(&open(&shelf.path).unwrap()).unwrap(), 2);
    }

    #[test]
    fn f15_after_an_error_in_doubt_nothing_is_acknowledged_until_the_database_was_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = shelf(&folder);
        // The transaction is gone under the batch: what was done in it is not known.
        let spoil = |connection: &Connection| {
            connection.execute_batch("ROLLBACK")?;
            Err(rusqlite::Error::QueryReturnedNoRows)
        };
        let (changes, answers): (Vec<_>, Vec<_>) = [ask(insert("a")), ask(spoil)].into_iter().unzip();
        shelf.write(changes);
        for mut answer in answers {
            assert!(answer.try_recv().unwrap().is_err());
        }
        assert!(shelf.connection.is_none());
        let (change, mut answer) = ask(insert("b"));
        shelf.write(vec![change]);
        assert_eq!(
            answer.try_recv().unwrap().unwrap(),
            1,
            "opened anew, and nothing of the lost batch is there"
        );

        // A database that has gone meanwhile is not replaced, and not looked for at every turn.
        shelf.connection = None;
        shelf.tried = None;
        std::fs::rename(&shelf.path, folder.path().join("elsewhere")).unwrap();
        let (change, mut answer) = ask(insert("c"));
        shelf.write(vec![change]);
        assert!(matches!(answer.try_recv().unwrap(), Err(StoreError::Damaged { .. })));
        let (change, mut answer) = ask(insert("c"));
        shelf.write(vec![change]);
        assert!(matches!(answer.try_recv().unwrap(), Err(StoreError::Unavailable { .. })));
        assert!(!shelf.path.exists());
    }

    #[test]
    fn a_change_that_nobody_waits_for_any_more_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = shelf(&folder);
        let path = shelf.path.clone();
        let (changes, queue) = mpsc::channel(8);
        let (abandoned, answer) = ask(insert("a"));
        drop(answer);
        let (wanted, mut answer) = ask(insert("b"));
        changes.try_send(abandoned).unwrap_or_else(|_| panic!("there is room"));
        changes.try_send(wanted).unwrap_or_else(|_| panic!("there is room"));
        drop(changes);
        shelf.run(queue);
        assert_eq!(answer.try_recv().unwrap().unwrap(), 1);
        assert_eq!(count(&open(&path).unwrap()).unwrap(), 1);
    }
}
