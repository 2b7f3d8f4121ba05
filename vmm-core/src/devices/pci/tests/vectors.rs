//! MSI-X: what is sent, what is kept.

use super::fake::Vectors;
use crate::devices::pci::msi::MsiMessage;
use crate::devices::pci::*;

struct Rig {
    vectors: Vectors,
    config: ConfigSpace,
    capability: usize,
    msix: Msix,
}

impl Rig {
    fn new(count: u16) -> Self {
        let vectors = Vectors::default();
        let msix = Msix::new(count, &vectors).unwrap();
        let mut config = ConfigSpace::new(Identity::default(), &[]);
        let capability = msix.add_capability(&mut config, 0, 0x4000, 0x5000);
        Self { vectors, config, capability, msix }
    }

    fn control(&mut self, value: u16) {
        self.config.write(self.capability + 2, &value.to_le_bytes());
        self.msix.follow(&self.config, self.capability);
    }

    fn entry(&self, vector: u64, address: u64, data: u32, control: u32) {
        self.msix.write_table(vector * 16, &address.to_le_bytes());
        self.msix.write_table(vector * 16 + 8, &data.to_le_bytes());
        self.msix.write_table(vector * 16 + 12, &control.to_le_bytes());
    }

    fn sent(&self, vector: usize) -> usize {
        self.vectors.0.lock().unwrap()[vector].sent().len()
    }

    fn pending(&self) -> u8 {
        let mut byte = [0xff; 9];
        self.msix.read_pending(0, &mut byte);
        assert_eq!(byte[1..], [0; 8]);
        byte[0]
    }
}

const ON: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

#[test]
fn a_vector_sends_its_message_and_nothing_of_another() {
    let mut rig = Rig::new(3);
    rig.control(ON);
    rig.entry(1, 0xfee0_1000, 0x41, 0);
    rig.msix.signal(1);
    rig.msix.signal(7);
    let sent = rig.vectors.0.lock().unwrap()[1].sent();
    assert_eq!(sent, [MsiMessage { address: 0xfee0_1000, data: 0x41 }]);
    assert_eq!((rig.sent(0), rig.sent(2), rig.pending()), (0, 0, 0));
}

#[test]
fn a_masked_vector_is_pending_and_sends_once_when_it_is_unmasked() {
    let mut rig = Rig::new(3);
    rig.control(ON);
    rig.entry(2, 0xfee0_0000, 0x42, 1);
    rig.msix.signal(2);
    rig.msix.signal(2);
    assert_eq!((rig.sent(2), rig.pending()), (0, 4));
    rig.msix.write_table(2 * 16 + 12, &[0; 4]);
    assert_eq!((rig.sent(2), rig.pending()), (1, 0));
}

#[test]
fn the_function_mask_masks_all_and_msix_that_is_off_sends_nothing() {
    let mut rig = Rig::new(2);
    rig.entry(0, 0xfee0_0000, 0x40, 0);
    rig.control(ON | MASK_ALL);
    rig.msix.signal(0);
    assert_eq!((rig.sent(0), rig.pending()), (0, 1));
    rig.control(ON);
    assert_eq!((rig.sent(0), rig.pending()), (1, 0));
    rig.control(0);
    assert!(!rig.msix.enabled());
    rig.msix.signal(0);
    assert_eq!((rig.sent(0), rig.pending()), (1, 1));
}

#[test]
fn the_table_reads_back_what_can_be_written_and_ends_where_it_ends() {
    let rig = Rig::new(2);
    rig.msix.write_table(0, &[0xff; 64]);
    let mut table = [0xaa; 40];
    rig.msix.read_table(0, &mut table);
    let entry = [&[0xfc][..], &[0xff; 11], &[1, 0, 0, 0]].concat();
    assert_eq!(table[..32], [entry.clone(), entry].concat());
    assert_eq!(table[32..], [0; 8]);
    assert_eq!(rig.config.word(rig.capability + 2), 1, "the size is that of the table less one");
}

#[test]
fn pending_bits_and_masks_come_through_the_wire_and_nothing_is_sent_twice() {
    let mut rig = Rig::new(2);
    rig.control(ON);
    rig.entry(0, 0xfee0_0000, 0x40, 0);
    rig.entry(1, 0xfee0_0000, 0x41, 1);
    rig.msix.signal(0);
    rig.msix.signal(1);
    let mut target = Rig::new(2);
    target.msix.load(rig.msix.state()).unwrap();
    target.control(ON);
    assert_eq!((target.sent(0), target.sent(1), target.pending()), (0, 0, 2));
    target.msix.write_table(16 + 12, &[0; 4]);
    assert_eq!((target.sent(1), target.pending()), (1, 0));
    assert_eq!(target.msix.state(), MsixState { pending: vec![false; 2], ..target.msix.state() });
}

#[test]
fn a_table_of_another_size_or_with_bits_that_do_not_exist_is_refused() {
    let rig = Rig::new(2);
    let good = rig.msix.state();
    let mut short = good.clone();
    short.table.pop();
    let mut long = good.clone();
    long.pending.push(true);
    let mut odd = good;
    odd.table[1].control = 3;
    for (state, named) in [(short, "1 MSI-X vectors"), (long, "3 pending"), (odd, "vector 1")] {
        let (found, _) = rig.msix.load(state).unwrap_err();
        assert!(found.contains(named), "{found}");
    }
}
