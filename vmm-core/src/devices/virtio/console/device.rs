//! The device.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::events::ConsoleSubscriber;
use super::port::Port;
use super::state::{ConsoleState, PortState};
use super::streams::{CONTROL_RECEIVE, Streams};
use crate::cpr::Mode;
use crate::cpr::fds::FdTable;
use crate::cpr::format::{StateReader, StateWriter};
use crate::devices::chardev::{Chardev, ChardevState};
use crate::devices::virtio::{ActiveQueue, DeviceKind, Run, VirtioDevice, Worker, read_from};
use crate::devices::{DeviceError, Subscriber};

/// virtio's id of consoles, and PCI's class of communication controllers.
const KIND: DeviceKind = DeviceKind { id: 3, class: 0x07_8000 };
/// There are control queues and ports with names.
const MULTIPORT: u64 = 1 << 1;
/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 128;

/// A console and ports with names.
pub struct Console {
    shared: Arc<Shared>,
    sizes: Vec<u16>,
    worker: Worker,
}

/// What the device's thread and the event loop share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) ports: Vec<Port>,
    /// The notifications of the queues that are enabled, by the queues' numbers.
    kicks: Mutex<Vec<(u16, Arc<EventFd>)>>,
}

impl Shared {
    /// The port whose queue this is, if it is one's.
    pub(super) fn port_of(&self, queue: u16) -> Option<&Port> {
        self.ports.iter().find(|port| [port.receive_queue(), port.receive_queue() + 1].contains(&queue))
    }

    /// Has the device's thread look at a queue.
    pub(super) fn wake(&self, queue: u16) {
        let kicks = self.kicks.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, kick) in kicks.iter().filter(|(index, _)| *index == queue) {
            // It can only fail when the counter is full, and then the thread is awake.
            let _ = kick.write(1);
        }
    }

    /// Has the device's thread look at all that may have become possible for a port.
    pub(super) fn wake_port(&self, port: &Port) {
        for queue in [port.receive_queue(), port.receive_queue() + 1, CONTROL_RECEIVE] {
            self.wake(queue);
        }
    }

    fn listen(&self, kicks: Vec<(u16, Arc<EventFd>)>) {
        *self.kicks.lock().unwrap_or_else(PoisonError::into_inner) = kicks;
    }
}

impl Console {
    /// A device after reset, with ports in the order of their numbers: number, name, back end.
    pub fn new(id: &str, ports: Vec<(u32, Option<String>, Chardev)>) -> Result<Self, DeviceError> {
        let ports: Vec<_> =
            ports.into_iter().map(|(number, name, chardev)| Port::new(number, name, chardev)).collect();
        // Those of port 0 and of control are always there.
        let last = ports.last().map_or(0, |port| port.number);
        let sizes = vec![QUEUE_SIZE; 4 + 2 * last as usize];
        let shared = Arc::new(Shared { ports, kicks: Mutex::default() });
        let worker = Worker::spawn(id, Streams(Arc::clone(&shared)))?;
        Ok(Self { shared, sizes, worker })
    }
}

/// Where the sections of a port's back end are, among those of all back ends.
fn instance(slot: u32, port: &Port) -> u32 {
    slot << 8 | port.number
}

impl VirtioDevice for Console {
    fn id(&self) -> &str {
        self.worker.id()
    }

    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    /// `cols` and `rows` (not given), `max_nr_ports`.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; 8];
        let ports = (self.sizes.len() as u32 - 2) / 2;
        config[4..].copy_from_slice(&ports.to_le_bytes());
        read_from(&config, offset, data);
    }

    fn start(&self, run: Run) -> Result<(), DeviceError> {
        if run.features & MULTIPORT == 0 {
            // Nobody will say so.
            self.shared.ports.iter().filter(|port| port.number == 0).for_each(|port| port.lock().open = true);
        }
        self.shared.listen(run.queues.iter().map(|queue| (queue.index, Arc::clone(&queue.kick))).collect());
        self.worker.start(run);
        Ok(())
    }

    fn stop(&self, deadline: Instant) -> Result<Vec<ActiveQueue>, DeviceError> {
        self.worker.stop(deadline)
    }

    fn reset(&self) {
        self.shared.listen(Vec::new());
        self.shared.ports.iter().for_each(|port| port.lock().reset());
    }

    fn quiesce(&self) {
        self.shared.ports.iter().for_each(|port| port.lock().chardev.quiesce());
    }

    fn resume(&self) {
        self.shared.ports.iter().for_each(|port| port.lock().chardev.resume());
    }

    fn hand_over(&self) {
        self.shared.ports.iter().for_each(|port| port.lock().chardev.hand_over());
    }

    fn subscriber(&self) -> Option<Subscriber> {
        Some(Arc::new(Mutex::new(ConsoleSubscriber(Arc::clone(&self.shared)))))
    }

    fn save(&self, slot: u32, out: &mut StateWriter) -> Result<(), DeviceError> {
        let ports = self.shared.ports.iter().map(|port| PortState::of(port.number, &port.lock())).collect();
        out.put(slot, &ConsoleState { ports })?;
        for port in &self.shared.ports {
            out.put(instance(slot, port), &port.lock().chardev.state())?;
        }
        Ok(())
    }

    fn load(&self, slot: u32, state: &mut StateReader) -> Result<(), DeviceError> {
        let ConsoleState { ports } = state.take(slot)?;
        let numbers =
            |list: &mut dyn Iterator<Item = u32>| list.map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
        let found = numbers(&mut ports.iter().map(|port| port.number));
        let expected = numbers(&mut self.shared.ports.iter().map(|port| port.number));
        let impossible = DeviceError::impossible(self.id());
        if found != expected {
            return Err(impossible((format!("ports {found}"), format!("ports {expected}"))));
        }
        for (port, saved) in self.shared.ports.iter().zip(ports) {
            let chardev: ChardevState = state.take(instance(slot, port))?;
            let mut stream = port.lock();
            saved.load(&mut stream).map_err(&impossible)?;
            stream.chardev.load(chardev)?;
        }
        Ok(())
    }

    fn descriptors(&self, mode: Mode, fds: &mut FdTable) -> Result<(), DeviceError> {
        if mode != Mode::CprReboot {
            self.shared.ports.iter().try_for_each(|port| port.lock().chardev.register(fds))?;
        }
        Ok(())
    }
}
