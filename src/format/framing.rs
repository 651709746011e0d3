//! The frame of a message of a schema registry: a byte 0, the schema's id in four bytes, big-endian, then the data.
//!
//! Protocol Buffers put **message indexes** between the id and the data: the path to the message's type in its file, as
//! a count and that many indexes, zigzag varints all. The path `[0]` is written as a single 0.

/// First byte of every frame.
const MAGIC: u8 = 0;

/// Maximum length of a path of message indexes: messages nested deeper are refused.
#[cfg(feature = "protobuf")]
const DEEPEST_PATH: i64 = 32;

/// Splits a message into its schema's id and its data.
///
/// # Errors
/// Fails with the reason for rejecting the message.
#[inline]
pub(crate) fn split(message: &[u8]) -> Result<(u32, &[u8]), String> {
    match message {
        [MAGIC, a, b, c, d, data @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), data)),
        [MAGIC, ..] | [] => Err(format!("no schema id: the message has {} bytes, and a frame has 5", message.len())),
        [first, ..] => Err(format!("no schema id: the message begins with byte {first}, and a frame with byte 0")),
    }
}

/// Writes the frame of a message of this schema.
#[cfg(feature = "registry")]
pub(crate) fn write(id: u32, out: &mut Vec<u8>) {
    out.push(MAGIC);
    out.extend_from_slice(&id.to_be_bytes());
}

/// Splits the data of a frame into message indexes and a message.
///
/// # Errors
/// Fails with the reason for rejecting the message.
#[cfg(feature = "protobuf")]
pub(crate) fn split_indexes(data: &[u8]) -> Result<(Vec<u32>, &[u8]), String> {
    let cut = || String::from("the message ends within its message indexes");
    let (count, mut rest) = varint(data).ok_or_else(cut)?;
    if count == 0 {
        return Ok((vec![0], rest));
    }
    if !(1..=DEEPEST_PATH).contains(&count) {
        return Err(format!("{count} message indexes, and at most {DEEPEST_PATH} can be"));
    }
    let mut path = Vec::new();
    for _ in 0..count {
        let (index, after) = varint(rest).ok_or_else(cut)?;
        path.push(u32::try_from(index).map_err(|_| format!("{index} is no message index"))?);
        rest = after;
    }
    Ok((path, rest))
}

/// Writes message indexes.
#[cfg(feature = "protobuf")]
pub(crate) fn write_indexes(path: &[u32], out: &mut Vec<u8>) {
    if path == [0] {
        return out.push(0);
    }
    let mut put = |value: u64| {
        let mut left = value << 1;
        while left > 0x7f {
            out.push(left as u8 | 0x80);
            left >>= 7;
        }
        out.push(left as u8);
    };
    put(path.len() as u64);
    path.iter().for_each(|index| put(u64::from(*index)));
}

/// Reads a zigzag varint of at most five bytes; `None` if the bytes end within it, or if it is longer.
#[cfg(feature = "protobuf")]
fn varint(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(((value >> 1) as i64 ^ -((value & 1) as i64), &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "registry")]
    fn a_frame_is_a_zero_and_an_id() {
        let mut framed = Vec::new();
        write(0x0102_0304, &mut framed);
        framed.extend_from_slice(b"data");
        assert_eq!(framed, b"\0\x01\x02\x03\x04data");
        assert_eq!(split(&framed), Ok((0x0102_0304, &b"data"[..])));
        assert_eq!(split(b"\0\0\0\0\x07"), Ok((7, &b""[..])));
        for (bytes, why) in [
            (&b""[..], "no schema id: the message has 0 bytes, and a frame has 5"),
            (b"\0\0\0\x01", "no schema id: the message has 4 bytes, and a frame has 5"),
            (b"{\"a\":1}", "no schema id: the message begins with byte 123, and a frame with byte 0"),
            (b"\x01\0\0\0\x01", "no schema id: the message begins with byte 1, and a frame with byte 0"),
        ] {
            assert_eq!(split(bytes), Err(why.into()));
        }
    }

    #[test]
    #[cfg(feature = "protobuf")]
    fn message_indexes_are_read_as_written_and_bounded() {
        for path in [vec![0], vec![1], vec![0, 0], vec![3, 70_000, 2], vec![0; 32]] {
            let mut bytes = Vec::new();
            write_indexes(&path, &mut bytes);
            bytes.push(9);
            assert_eq!(split_indexes(&bytes), Ok((path.clone(), &[9][..])));
            for end in 0..bytes.len() - 1 {
                assert!(split_indexes(&bytes[..end]).is_err(), "{path:?} cut at {end}");
            }
        }
        assert_eq!(split_indexes(&[0, 5]), Ok((vec![0], &[5][..])));
        assert!(split_indexes(&[66]).is_err() && split_indexes(&[1, 0]).is_err() && split_indexes(&[2, 1]).is_err());
        assert!(split_indexes(&[0xff; 12]).is_err());
    }
}
