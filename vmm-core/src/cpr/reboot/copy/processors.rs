//! Work on many chunks, by all processors.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use super::CopyError;

/// The most threads at a time: each has buffers of its own.
const MOST: usize = 16;

/// Does something with each of `items` until one fails, and gives the first error. `tools` makes what a thread needs for it.
pub(super) fn each<T: Sync, K>(
    items: &[T],
    tools: &(dyn Fn() -> Result<K, CopyError> + Sync),
    one: &(dyn Fn(&T, &mut K) -> Result<(), CopyError> + Sync),
) -> Result<(), CopyError> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), CopyError> {
        let mut tools = tools()?;
        while let Some(item) = items.get(next.fetch_add(1, Relaxed)) {
            one(item, &mut tools).inspect_err(|_| {
                // Nobody begins another.
                next.store(items.len(), Relaxed);
            })?;
        }
        Ok(())
    };
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let others = processors.min(MOST).min(items.len()).saturating_sub(1);
    thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().name("copy".into()).spawn_scoped(scope, work).ok();
        // Where no thread can be had there are fewer.
        let started: Vec<_> = (0..others).map_while(spawn).collect();
        let done = work();
        let panicked = || CopyError::io("copying RAM")(io::Error::other("a thread panicked"));
        let ended = started.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())));
        // Every thread is waited for.
        ended.collect::<Vec<_>>().into_iter().fold(done, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn each_is_dealt_with_once() {
        let (items, seen): (Vec<u32>, _) = ((0..1000).collect(), Mutex::new(Vec::new()));
        let note = |item: &u32, (): &mut ()| {
            seen.lock().unwrap().push(*item);
            Ok(())
        };
        each(&items, &|| Ok(()), &note).unwrap();
        let mut all = seen.into_inner().unwrap();
        all.sort_unstable();
        assert_eq!(all, items);
    }

    #[test]
    fn none_is_begun_by_who_has_seen_an_error() {
        let (items, begun) = ([0; 1000], AtomicUsize::new(0));
        let fail = |_: &i32, (): &mut ()| {
            begun.fetch_add(1, Relaxed);
            Err(CopyError::Cancelled)
        };
        assert!(matches!(each(&items, &|| Ok(()), &fail), Err(CopyError::Cancelled)));
        assert!((1..=MOST).contains(&begun.into_inner()));
    }

    #[test]
    fn tools_that_cannot_be_had_are_an_error() {
        let none = || Err(CopyError::Cancelled);
        assert!(each(&[1], &none, &|_, (): &mut ()| Ok(())).is_err());
    }
}
