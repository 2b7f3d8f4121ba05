//! Makes checksums right, so that what lies behind them is reached by bytes that are wrong otherwise.

use zerocopy::FromBytes;

use super::header::{HEADER_LEN, RawHeader};
use super::table::{ENTRY_LEN, RawEntry};

/// Puts the checksums of header, table and payloads right, as far as they are there.
pub(crate) fn mend(bytes: &mut [u8]) {
    let Ok((header, rest)) = RawHeader::mut_from_prefix(bytes) else { return };
    let count = (header.section_count.get() as usize).min(rest.len() / ENTRY_LEN);
    let (table, payloads) = rest.split_at_mut(count * ENTRY_LEN);
    let start = HEADER_LEN + table.len();
    for entry in table.chunks_exact_mut(ENTRY_LEN) {
        let Ok(entry) = RawEntry::mut_from_bytes(entry) else { return };
        let from = (entry.offset.get() as usize).checked_sub(start);
        let to = from.and_then(|from| from.checked_add(entry.length.get() as usize));
        if let Some(payload) = from.zip(to).and_then(|(from, to)| payloads.get(from..to)) {
            entry.crc = crc32fast::hash(payload).into();
        }
    }
    header.table_crc = crc32fast::hash(table).into();
    header.header_crc = header.crc().into();
}
