//! Documents on disk: read while they come, within bounds, gone on with.

use super::*;

fn limits(max_document: u64, max_spool: u64) -> SpoolLimits {
    SpoolLimits { max_document, max_spool, spool_reserve: 0, ..SpoolLimits::default() }
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

async fn all(source: &Spooled, mut offset: u64, piece: usize) -> Result<Vec<u8>, SourceError> {
    let mut all = Vec::new();
    loop {
        let bytes = source.read(offset, piece).await?;
        if bytes.is_empty() {
            return Ok(all);
        }
        offset += bytes.len() as u64;
        all.extend_from_slice(&bytes);
    }
}

#[tokio::test]
async fn a4_a_document_is_read_from_any_place_while_it_comes() {
    let spool = Spool::open(None, limits(1 << 30, 1 << 30)).unwrap();
    let mut writer = spool.begin(Kind::Job, None).await.unwrap();
    let document = bytes(1_000_003);
    let readers: Vec<_> = [(0, 16_384), (1, 7_001), (999_999, 10), (1_000_003, 1), (65_536, 65_536)]
        .map(|(from, piece)| {
            let source = writer.spooled().clone();
            tokio::spawn(async move { (from, all(&source, from, piece).await.unwrap()) })
        })
        .into();
    for piece in document.chunks(30_011) {
        writer.write(Bytes::copy_from_slice(piece)).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(writer.spooled().digest(), None);
    assert_eq!(writer.finish().await.unwrap(), Digest::of(&document));
    for reader in readers {
        let (from, read) = reader.await.unwrap();
        assert!(read == document[from as usize..], "from {from}");
    }
    assert_eq!(writer.spooled().digest(), Some(Digest::of(&document)));
    assert_eq!(spool.used(), 1_000_003);
    drop(writer);
    assert_eq!(spool.used(), 0);
}

#[tokio::test]
async fn a4_a_document_that_breaks_off_says_where() {
    let spool = Spool::open(None, limits(100, 100)).unwrap();
    let mut writer = spool.begin(Kind::Job, None).await.unwrap();
    let source = writer.spooled().clone();
    writer.write(bytes(10)).await.unwrap();
    writer.flush().await.unwrap();
    assert_eq!(source.read(10, 0).await, Ok(Bytes::new()), "asked for nothing, it does not wait");
    drop(writer);
    assert_eq!(source.read(3, 100).await.unwrap(), bytes(10).slice(3..));
    assert_eq!(source.read(10, 100).await, Err(SourceError::BrokeOff { at: 10 }));
}

#[tokio::test]
async fn t23_bounds_hold_for_one_document_and_for_all() {
    let spool = Spool::open(None, limits(100, 150)).unwrap();
    assert!(matches!(spool.begin(Kind::Job, Some(101)).await, Err(SpoolError::TooLarge { max: 100 })));
    let mut first = spool.begin(Kind::Job, Some(100)).await.unwrap();
    assert!(matches!(spool.begin(Kind::Job, Some(51)).await, Err(SpoolError::Full(_))));
    let mut second = spool.begin(Kind::Kept, None).await.unwrap();
    first.write(bytes(100)).await.unwrap();
    first.flush().await.unwrap();
    first.write(bytes(1)).await.unwrap();
    assert!(matches!(first.flush().await, Err(SpoolError::TooLarge { max: 100 })));
    second.write(bytes(51)).await.unwrap();
    assert!(matches!(second.flush().await, Err(SpoolError::Full(_))));
    drop((first, second));
    assert_eq!(spool.used(), 0);
}

#[tokio::test]
async fn f14_a_disk_without_room_refuses_documents() {
    let limits = SpoolLimits { spool_reserve: u64::MAX, ..limits(100, 100) };
    let spool = Spool::open(None, limits).unwrap();
    assert!(matches!(spool.begin(Kind::Job, None).await, Err(SpoolError::Full(_))));
    assert_eq!(spool.used(), 0);
}

#[tokio::test]
async fn f32_a_document_with_a_note_is_gone_on_with_and_leftovers_go() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Spool::open(Some(folder.path()), limits(1 << 20, 1 << 20)).unwrap();
    let spool = open();
    let mut writer = spool.begin(Kind::Job, None).await.unwrap();
    writer.write(bytes(1000)).await.unwrap();
    writer.flush().await.unwrap();
    let name = writer.spooled().name().to_owned();
    writer.spooled().stays();
    spool.note(Kind::Job, &name, &serde_json::json!({"is": 1}), true).await.unwrap();
    drop((writer, spool.begin(Kind::Job, None).await.unwrap()));
    let folder = folder.path().join("spool");
    fs::write(folder.join("half.new"), b"{").unwrap();
    fs::write(folder.join("no.json"), b"{").unwrap();
    let spool = open();
    let notes = spool.notes(Kind::Job).await.unwrap();
    assert_eq!(notes, [(name.as_str().into(), serde_json::json!({"is": 1}))]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    let mut writer = spool.reopen(Kind::Job, &name).await.unwrap();
    writer.read_again().await.unwrap();
    writer.write(bytes(5)).await.unwrap();
    let digest = writer.finish().await.unwrap();
    assert_eq!(digest, Digest::of(&[bytes(1000), bytes(5)].concat()));
    spool.remove(Kind::Job, &name).await;
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    assert_eq!(all(writer.spooled(), 990, 4).await.unwrap().len(), 15, "who reads it goes on");
}
