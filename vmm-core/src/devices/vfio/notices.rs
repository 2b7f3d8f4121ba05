//! What the kernel says of a device besides its interrupts, by an eventfd each (VFIO's interrupts REQ and ERR): the host wants
//! it back, or it has failed.
//!
//! 1. A notice that comes while the guest stands waits in its eventfd, for whoever has the guest next.
//! 2. A host that wants its device back says so again and again, until it has it.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::handle::{Handle, IrqKind};
use super::interrupts::{adopt, name};
use super::ioctls::IrqAction;
use super::wires::{Notice, Tell};
use crate::cpr::fds::FdTable;
use crate::devices::eventfd::{self, borrow};
use crate::devices::{DeviceError, Subscriber};

/// A kind of notice: what its eventfd is called, and what it says.
type Kind = (&'static str, IrqKind, fn(String) -> Notice);
const KINDS: [Kind; 2] = [("req", IrqKind::Request, Notice::Wanted), ("err", IrqKind::Error, Notice::Failed)];

/// The notices of a device.
pub(super) struct Notices {
    id: String,
    /// In the order of their kinds.
    eventfds: Vec<EventFd>,
    held: Mutex<bool>,
    tell: Tell,
}

impl Notices {
    /// Asks the kernel for them, on new eventfds; or those that were handed over, for which it was asked.
    pub(super) fn new(
        handle: &Handle,
        mut kept: Option<&mut FdTable>,
        tell: Tell,
    ) -> Result<Arc<Self>, DeviceError> {
        let id = handle.id();
        let eventfd = |(what, kind, _)| -> Result<EventFd, DeviceError> {
            if let Some(fds) = &mut kept {
                return adopt(fds, name(id, what, 0));
            }
            let eventfd = eventfd::make(id)?;
            // Only a device of PCI Express can tell that it has failed.
            if handle.interrupts(kind).is_ok_and(|(count, _)| count > 0) {
                let asked = handle.irqs(kind, IrqAction::Signal(0, &[Some(borrow(&eventfd))]));
                asked.map_err(DeviceError::io(id, format!("asking VFIO for its notices ({kind:?})")))?;
            }
            Ok(eventfd)
        };
        let eventfds = KINDS.into_iter().map(eventfd).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self { id: id.to_owned(), eventfds, held: Mutex::new(false), tell }))
    }

    /// Registers (duplicates of) the eventfds.
    pub(super) fn register(&self, fds: &mut FdTable) -> Result<(), DeviceError> {
        for ((what, ..), eventfd) in KINDS.iter().zip(&self.eventfds) {
            fds.insert_dup(name(&self.id, what, 0), borrow(eventfd))?;
        }
        Ok(())
    }

    /// Leaves them in their eventfds, or ends that. One that was taken before has been told of when this returns.
    pub(super) fn hold(&self, held: bool) {
        *self.lock() = held;
        if !held {
            // Nothing is added: the event loop looks at it once more.
            self.eventfds.iter().for_each(|eventfd| drop(eventfd.write(0)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes in the event manager.
    pub(super) fn subscriber(self: &Arc<Self>) -> Subscriber {
        Arc::new(Mutex::new(NoticeSubscriber(Arc::clone(self))))
    }
}

struct NoticeSubscriber(Arc<Notices>);

impl MutEventSubscriber for NoticeSubscriber {
    fn init(&mut self, ops: &mut EventOps) {
        for eventfd in &self.0.eventfds {
            if let Err(error) = ops.add(Events::new(eventfd, EventSet::IN | EventSet::EDGE_TRIGGERED)) {
                tracing::error!("{}: its notices: {error:?}", self.0.id);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let held = self.0.lock();
        if *held {
            return;
        }
        for ((_, _, notice), eventfd) in KINDS.iter().zip(&self.0.eventfds) {
            if eventfd.as_raw_fd() == events.fd() && eventfd.read().is_ok() {
                (self.0.tell)(notice(self.0.id.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use event_manager::{EventManager, SubscriberOps};

    use super::*;

    #[test]
    fn a_notice_that_comes_while_it_is_held_is_told_once_afterwards() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&told);
        let notices = Arc::new(Notices {
            id: "vfio-2".into(),
            eventfds: vec![eventfd::open().unwrap(), eventfd::open().unwrap()],
            held: Mutex::new(false),
            tell: Arc::new(move |notice| heard.lock().unwrap().push(notice)),
        });
        let mut manager = EventManager::<Subscriber>::new().unwrap();
        manager.add_subscriber(notices.subscriber());
        let mut told = || {
            manager.run_with_timeout(10).unwrap();
            std::mem::take(&mut *told.lock().unwrap())
        };
        notices.eventfds[0].write(1).unwrap();
        assert_eq!(told(), [Notice::Wanted("vfio-2".into())]);
        notices.hold(true);
        notices.eventfds[1].write(1).unwrap();
        assert_eq!((told(), told()), (vec![], vec![]));
        notices.hold(false);
        assert_eq!((told(), told()), (vec![Notice::Failed("vfio-2".into())], vec![]));
    }

    #[test]
    fn a_notice_that_nobody_was_told_of_is_the_next_owners() {
        let mut fds = FdTable::new();
        let owner = |eventfds| Notices {
            id: "vfio-2".into(),
            eventfds,
            held: Mutex::new(true),
            tell: Arc::new(drop),
        };
        let source = owner(vec![eventfd::open().unwrap(), eventfd::open().unwrap()]);
        source.eventfds[1].write(1).unwrap();
        source.register(&mut fds).unwrap();
        let kept = KINDS.map(|(what, ..)| adopt(&mut fds, name("vfio-2", what, 0)).unwrap());
        assert!(kept[0].read().is_err());
        assert_eq!(kept[1].read().unwrap(), 1);
    }
}
