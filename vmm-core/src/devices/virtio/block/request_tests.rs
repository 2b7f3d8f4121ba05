use proptest::prelude::*;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::Address;

use super::*;

const RAM: u64 = 1 << 20;
const HEADER_AT: u64 = 0x1_0000;
const DATA_AT: u64 = 0x2_0000;
const STATUS_AT: u64 = 0x8_0000;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap())
}

fn limits() -> Limits {
    Limits {
        sectors: 2048,
        block_size: 512,
        read_only: false,
        discard: true,
        write_zeroes: true,
        write_through: false,
        id: serial_id("serial-number"),
    }
}

fn header(memory: &GuestMemoryMmap, request: u32, sector: u64) {
    memory.write_obj(request, GuestAddress(HEADER_AT)).unwrap();
    memory.write_obj(0xdead_beef_u32, GuestAddress(HEADER_AT + 4)).unwrap();
    memory.write_obj(sector, GuestAddress(HEADER_AT + 8)).unwrap();
}

/// Parses the chain that these (address, length, flags) make.
fn parse(
    memory: &Arc<GuestMemoryMmap>,
    limits: &Limits,
    pieces: &[(u64, u32, u16)],
) -> Result<Request, RequestError> {
    let queue = MockSplitQueue::new(&**memory, 64);
    let descriptors: Vec<_> = pieces
        .iter()
        .map(|(addr, len, flags)| RawDescriptor::from(Descriptor::new(*addr, *len, *flags, 0)))
        .collect();
    let chain = queue.build_desc_chain(&descriptors).unwrap();
    Request::parse(chain, memory, limits)
}

/// Parses a request of one header, one status and `data` between them.
fn request(
    memory: &Arc<GuestMemoryMmap>,
    limits: &Limits,
    request: u32,
    sector: u64,
    data: &[(u64, u32, u16)],
) -> Request {
    header(memory, request, sector);
    let mut pieces = vec![(HEADER_AT, 16, 0)];
    pieces.extend_from_slice(data);
    pieces.push((STATUS_AT, 1, WRITE));
    parse(memory, limits, &pieces).unwrap()
}

fn answer(request: &Request) -> (Status, u32) {
    match request.action {
        Action::Answer(status, written) => (status, written),
        Action::Submit(ref operation) => panic!("{operation:?}"),
    }
}

#[test]
fn a_read_and_a_write_become_io_on_the_guest_s_buffers() {
    let memory = memory();
    let read = request(
        &memory,
        &limits(),
        VIRTIO_BLK_T_IN,
        3,
        &[(DATA_AT, 512, WRITE), (DATA_AT + 4096, 1024, WRITE)],
    );
    let Action::Submit(Operation::Read { offset, into }) = &read.action else { panic!() };
    assert_eq!((*offset, into.len(), into.pieces().len(), read.reply.data), (1536, 1536, 2, 1536));
    let through = Limits { write_through: true, ..limits() };
    let write = request(&memory, &through, VIRTIO_BLK_T_OUT, 2046, &[(DATA_AT, 1024, 0)]);
    let Action::Submit(Operation::Write { offset, from, durable }) = &write.action else { panic!() };
    assert_eq!((*offset, from.len(), *durable), (2046 * 512, 1024, true));
}

#[test]
fn the_status_and_what_was_written_before_it_are_told_to_the_driver() {
    let memory = memory();
    let read = request(&memory, &limits(), VIRTIO_BLK_T_IN, 0, &[(DATA_AT, 512, WRITE)]);
    assert_eq!(read.reply.finish(&memory, Status::Ok, read.reply.data), Ok(513));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), 0);
    assert_eq!(read.reply.finish(&memory, Status::IoError, 0), Ok(0));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS_AT)).unwrap(), 1);
    let flush = request(&memory, &limits(), VIRTIO_BLK_T_FLUSH, 0, &[]);
    assert!(matches!(flush.action, Action::Submit(Operation::Flush)));
    assert_eq!(flush.reply.finish(&memory, Status::Ok, 0), Ok(1));
}

#[test]
fn a_request_is_the_same_however_it_is_cut_into_descriptors() {
    let memory = memory();
    header(&memory, VIRTIO_BLK_T_OUT, 5);
    for pieces in [
        vec![(HEADER_AT, 16 + 512, 0), (STATUS_AT, 1, WRITE)],
        vec![(HEADER_AT, 1, 0), (HEADER_AT + 1, 20, 0), (HEADER_AT + 21, 507, 0), (STATUS_AT - 7, 8, WRITE)],
        vec![(HEADER_AT, 16, 0), (0, 0, 0), (HEADER_AT + 16, 512, 0), (STATUS_AT, 1, WRITE), (0, 0, WRITE)],
    ] {
        let write = parse(&memory, &limits(), &pieces).unwrap();
        let Action::Submit(Operation::Write { offset, from, .. }) = &write.action else {
            panic!("{pieces:?}")
        };
        assert_eq!((*offset, from.len(), write.reply.status.0), (5 * 512, 512, STATUS_AT));
    }
}

#[test]
fn what_is_not_within_the_disk_or_not_whole_blocks_is_an_io_error() {
    let memory = memory();
    let cases: [(u64, u32, u64); 7] = [
        (2048, 512, DATA_AT),
        (2047, 1024, DATA_AT),
        (u64::MAX, 512, DATA_AT),
        (u64::MAX / 512 + 1, 512, DATA_AT),
        (0, 511, DATA_AT),
        (0, 512, RAM - 511),
        (0, 512, u64::MAX - 100),
    ];
    for (sector, len, addr) in cases {
        for (kind, flags) in [(VIRTIO_BLK_T_IN, WRITE), (VIRTIO_BLK_T_OUT, 0)] {
            let refused = request(&memory, &limits(), kind, sector, &[(addr, len, flags)]);
            assert_eq!(
                answer(&refused),
                (Status::IoError, 0),
                "{len} bytes at sector {sector} from {addr:#x}"
            );
        }
    }
    let blocks = Limits { block_size: 4096, ..limits() };
    for (sector, len) in [(1, 4096), (8, 512)] {
        let refused = request(&memory, &blocks, VIRTIO_BLK_T_IN, sector, &[(DATA_AT, len, WRITE)]);
        assert_eq!(answer(&refused), (Status::IoError, 0));
    }
}

#[test]
fn nothing_is_written_to_a_read_only_disk() {
    let memory = memory();
    let disk = Limits { read_only: true, discard: false, write_zeroes: false, ..limits() };
    let status = |kind, data: &[(u64, u32, u16)]| answer(&request(&memory, &disk, kind, 0, data)).0;
    assert_eq!(status(VIRTIO_BLK_T_OUT, &[(DATA_AT, 512, 0)]), Status::IoError);
    assert_eq!(status(VIRTIO_BLK_T_DISCARD, &[(DATA_AT, 16, 0)]), Status::Unsupported);
    assert_eq!(status(VIRTIO_BLK_T_WRITE_ZEROES, &[(DATA_AT, 16, 0)]), Status::Unsupported);
    assert_eq!(status(VIRTIO_BLK_T_FLUSH, &[]), Status::Ok);
}

#[test]
fn the_serial_number_is_written_as_far_as_there_is_room() {
    let memory = memory();
    for (room, written) in [(20, 20), (512, 20), (6, 6)] {
        memory.write_slice(&[0xff; 32], GuestAddress(DATA_AT)).unwrap();
        let id = request(&memory, &limits(), VIRTIO_BLK_T_GET_ID, 0, &[(DATA_AT, room, WRITE)]);
        assert_eq!(answer(&id), (Status::Ok, written));
        let mut seen = [0; 32];
        memory.read_slice(&mut seen, GuestAddress(DATA_AT)).unwrap();
        let expected = b"serial-number\0\0\0\0\0\0\0";
        assert_eq!(seen[..written as usize], expected[..written as usize]);
        assert_eq!(seen[written as usize], 0xff);
        let used = if room > 20 { 20 } else { room + 1 };
        assert_eq!(id.reply.finish(&memory, Status::Ok, written), Ok(used));
    }
}

fn segment(memory: &GuestMemoryMmap, sector: u64, sectors: u32, flags: u32) {
    memory.write_obj(sector, GuestAddress(DATA_AT)).unwrap();
    memory.write_obj(sectors, GuestAddress(DATA_AT + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(DATA_AT + 12)).unwrap();
}

#[test]
fn discards_and_zeroes_are_checked_like_any_write() {
    let memory = memory();
    let ask = |kind, sector, sectors, flags, len| {
        segment(&memory, sector, sectors, flags);
        request(&memory, &limits(), kind, 0, &[(DATA_AT, len, 0)])
    };
    let discard = ask(VIRTIO_BLK_T_DISCARD, 8, 16, 0, 16);
    assert!(matches!(discard.action, Action::Submit(Operation::Discard { offset: 4096, len: 8192 })));
    let zeroes = ask(VIRTIO_BLK_T_WRITE_ZEROES, 2047, 1, 1, 16);
    let Action::Submit(Operation::WriteZeroes { offset, len: 512, unmap: true, durable: false }) =
        zeroes.action
    else {
        panic!("{zeroes:?}")
    };
    assert_eq!(offset, 2047 * 512);
    let cases = [
        (VIRTIO_BLK_T_DISCARD, 0, 1, 1, 16, Status::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 2, 16, Status::Unsupported),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, 1, 0, 15, Status::IoError),
        (VIRTIO_BLK_T_DISCARD, 0, 1, 0, 32, Status::IoError),
        (VIRTIO_BLK_T_DISCARD, 0, 1, 0, 0, Status::IoError),
        (VIRTIO_BLK_T_DISCARD, 2047, 2, 0, 16, Status::IoError),
        (VIRTIO_BLK_T_DISCARD, u64::MAX, 2, 0, 16, Status::IoError),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, Limits::MAX_ZEROES_SECTORS + 1, 0, 16, Status::IoError),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, u32::MAX, 0, 16, Status::IoError),
    ];
    for (kind, sector, sectors, flags, len, expected) in cases {
        let refused = ask(kind, sector, sectors, flags, len);
        assert_eq!(
            answer(&refused).0,
            expected,
            "{kind} of {sectors} at {sector}, flags {flags}, {len} bytes"
        );
    }
}

#[test]
fn what_the_device_does_not_know_is_unsupported() {
    let memory = memory();
    let plain = Limits { discard: false, write_zeroes: false, ..limits() };
    for kind in [2, 3, 5, 14, 15, u32::MAX, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(answer(&request(&memory, &plain, kind, 0, &[])).0, Status::Unsupported);
    }
}

#[test]
fn a_chain_without_a_place_for_the_status_needs_a_reset() {
    let memory = memory();
    header(&memory, VIRTIO_BLK_T_FLUSH, 0);
    let refused = |pieces: &[(u64, u32, u16)]| parse(&memory, &limits(), pieces).unwrap_err();
    assert_eq!(refused(&[(HEADER_AT, 16, 0)]), RequestError::NoStatus { head: 0 });
    assert_eq!(refused(&[(HEADER_AT, 16, 0), (STATUS_AT, 0, WRITE)]), RequestError::NoStatus { head: 0 });
    assert_eq!(
        refused(&[(HEADER_AT, 15, 0), (STATUS_AT, 1, WRITE)]),
        RequestError::Header { head: 0, found: 15 }
    );
    assert_eq!(refused(&[(STATUS_AT, 1, WRITE)]), RequestError::Header { head: 0, found: 0 });
    assert_eq!(refused(&[(STATUS_AT, 1, WRITE), (HEADER_AT, 16, 0)]), RequestError::Order { head: 0 });
    for pieces in [[(RAM - 8, 16, 0), (STATUS_AT, 1, WRITE)], [(HEADER_AT, 16, 0), (RAM, 1, WRITE)]] {
        assert!(matches!(refused(&pieces), RequestError::Memory { head: 0, .. }));
    }
    let wrapping = refused(&[(HEADER_AT, 16, 0), (u64::MAX, 8, WRITE)]);
    assert!(matches!(wrapping, RequestError::Memory { .. }), "{wrapping}");
}

/// Parses whatever chain begins at descriptor 0 of this table.
fn parse_table(memory: &Arc<GuestMemoryMmap>, table: &[Descriptor]) -> Option<Result<Request, RequestError>> {
    let queue = MockSplitQueue::new(&**memory, 64);
    for (i, descriptor) in table.iter().enumerate() {
        queue.desc_table().store(i as u16, RawDescriptor::from(*descriptor)).unwrap();
    }
    memory.write_obj(1_u16, queue.avail_addr().unchecked_add(2)).unwrap();
    memory.write_obj(0_u16, queue.avail_addr().unchecked_add(4)).unwrap();
    let chain = queue.create_queue::<Queue>().unwrap().pop_descriptor_chain(memory.clone())?;
    Some(Request::parse(chain, memory, &limits()))
}

#[test]
fn a_chain_that_leads_nowhere_is_broken() {
    let memory = memory();
    header(&memory, VIRTIO_BLK_T_FLUSH, 0);
    let (next, indirect) = (VRING_DESC_F_NEXT as u16, VRING_DESC_F_INDIRECT as u16);
    let head = Descriptor::new(HEADER_AT, 16, next, 1);
    let cases: [(&[Descriptor], usize); 5] = [
        // Out of the table.
        (&[Descriptor::new(HEADER_AT, 16, next, 64)], 1),
        // In a circle.
        (&[head, Descriptor::new(DATA_AT, 16, next, 0)], 64),
        // An indirect table that is no whole number of descriptors; one that is not in RAM; one in another.
        (&[head, Descriptor::new(DATA_AT, 17, indirect, 0)], 1),
        (&[head, Descriptor::new(RAM, 16, indirect, 0)], 1),
        (&[Descriptor::new(HEADER_AT, 16, indirect, 0)], 0),
    ];
    memory.write_obj(Descriptor::new(HEADER_AT, 16, indirect, 0), GuestAddress(DATA_AT)).unwrap();
    for (table, seen) in cases {
        let result = parse_table(&memory, table).unwrap();
        if seen == 0 {
            // The header's bytes taken for a descriptor: an empty one, without a next.
            assert_eq!(result.unwrap_err(), RequestError::Header { head: 0, found: 0 });
        } else {
            assert_eq!(result.unwrap_err(), RequestError::Broken { head: 0, seen });
        }
    }
}

#[test]
fn an_indirect_table_is_followed_and_its_length_bounded() {
    let memory = memory();
    header(&memory, VIRTIO_BLK_T_IN, 0);
    let next = VRING_DESC_F_NEXT as u16;
    let table = |len: u16| {
        let last = len - 1;
        for i in 0..len {
            let (addr, size, flags) = match i {
                0 => (HEADER_AT, 16, next),
                _ if i == last => (STATUS_AT, 1, WRITE),
                _ => (DATA_AT, 512, WRITE | next),
            };
            let at = GuestAddress(0xa_0000 + 16 * u64::from(i));
            memory.write_obj(Descriptor::new(addr, size, flags, i + 1), at).unwrap();
        }
        let size = 16 * u32::from(len);
        parse_table(&memory, &[Descriptor::new(0xa_0000, size, VRING_DESC_F_INDIRECT as u16, 0)]).unwrap()
    };
    let Action::Submit(Operation::Read { into, .. }) = table(130).unwrap().action else { panic!() };
    assert_eq!(into.len(), 128 * 512);
    assert_eq!(table(2000).unwrap_err(), RequestError::Broken { head: 0, seen: MAX_PIECES + 2 });
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![
        4 => (0..RAM).boxed(),
        1 => Just(HEADER_AT).boxed(),
        1 => (RAM - 64..RAM + 64).boxed(),
        1 => any::<u64>().boxed(),
    ];
    let len = prop_oneof![Just(0), Just(1), Just(16), Just(512), 0..8192_u32, any::<u32>()];
    (address, len, 0..8_u16, prop_oneof![0..8_u16, any::<u16>()])
        .prop_map(|(addr, len, flags, next)| Descriptor::new(addr, len, flags, next))
}

proptest! {
    /// Whatever a guest puts into its ring and RAM: no panic, and what would be done is within disk and RAM.
    #[test]
    fn no_chain_gets_out_of_the_disk(
        table in prop::collection::vec(descriptor(), 1..8),
        kind in prop_oneof![0..16_u32, any::<u32>()],
        sector in prop_oneof![0..4096_u64, any::<u64>()],
        noise in prop::collection::vec(any::<u8>(), 64),
    ) {
        let memory = memory();
        for at in (0x1000..RAM).step_by(0x1000) {
            memory.write_slice(&noise, GuestAddress(at)).unwrap();
        }
        header(&memory, kind, sector);
        let Some(Ok(request)) = parse_table(&memory, &table) else { return Ok(()) };
        let end = match &request.action {
            Action::Submit(Operation::Read { offset, into: buffers } | Operation::Write { offset, from: buffers, .. }) => {
                prop_assert!((buffers.len() as u64).is_multiple_of(SECTOR));
                offset + buffers.len() as u64
            }
            Action::Submit(Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. }) => {
                offset + len
            }
            Action::Submit(Operation::Flush) | Action::Answer(..) => 0,
        };
        prop_assert!(end <= limits().sectors * SECTOR);
        let used = request.reply.finish(&memory, Status::Ok, request.reply.data).unwrap();
        prop_assert!(used <= request.reply.room + 1);
    }
}
