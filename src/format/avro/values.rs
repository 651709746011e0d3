//! Values without parts as the types of a schema write them.

use super::logical::{TimeUnit, days_of, time_of_day_of, timestamp_of, unscaled_bytes, unscaled_of};
use super::schema::AvroNode;
use crate::error::shortened;

pub(super) fn put_long(value: i64, out: &mut Vec<u8>) {
    let mut left = ((value << 1) ^ (value >> 63)) as u64;
    while left > 0x7f {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

pub(super) fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_long(bytes.len() as i64, out);
    out.extend_from_slice(bytes);
}

/// Returns an integer as a type writes it; `None` if it does not fit.
pub(super) fn integer_as(node: &AvroNode, value: i128) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    match node {
        AvroNode::Int | AvroNode::Date | AvroNode::TimeOfDay(TimeUnit::Millis) => {
            put_long(i32::try_from(value).ok()?.into(), &mut bytes);
        }
        AvroNode::Long | AvroNode::TimeOfDay(_) | AvroNode::Timestamp(..) => {
            put_long(i64::try_from(value).ok()?, &mut bytes);
        }
        AvroNode::Double => bytes.extend_from_slice(&exact_float(value, 53)?.to_le_bytes()),
        AvroNode::Float => bytes.extend_from_slice(&(exact_float(value, 24)? as f32).to_le_bytes()),
        AvroNode::Decimal { size, precision, scale, .. } => {
            let unscaled = unscaled_of(&value.to_string(), *precision, *scale).ok()?;
            put_decimal(unscaled, *size, &mut bytes)?;
        }
        _ => return None,
    }
    Some(bytes)
}

/// Returns an integer as a float; `None` if it has more bits.
fn exact_float(value: i128, bits: u32) -> Option<f64> {
    (value.unsigned_abs() <= 1 << bits).then_some(value as f64)
}

fn put_decimal(unscaled: i128, size: Option<usize>, out: &mut Vec<u8>) -> Option<()> {
    let bytes = unscaled_bytes(unscaled, size)?;
    match size {
        Some(_) => out.extend_from_slice(&bytes),
        None => put_bytes(&bytes, out),
    }
    Some(())
}

/// Returns a text as a type other than text writes it.
pub(super) fn text_as(node: &AvroNode, text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let wrong = || format!("the text `{}` is no `{}`", shortened(text, 100), node.branch_name());
    match node {
        AvroNode::String | AvroNode::Bytes => {}
        AvroNode::Enum { symbols, .. } => {
            let at = symbols.iter().position(|symbol| symbol == text).ok_or_else(wrong)?;
            put_long(at as i64, &mut bytes);
        }
        AvroNode::Date => put_long(days_of(text).ok_or_else(wrong)?.into(), &mut bytes),
        AvroNode::TimeOfDay(unit) => put_long(time_of_day_of(*unit, text).ok_or_else(wrong)?, &mut bytes),
        AvroNode::Timestamp(unit, is_local) => {
            put_long(timestamp_of(*unit, text, *is_local).ok_or_else(wrong)?, &mut bytes);
        }
        AvroNode::Decimal { size, precision, scale, .. } => {
            let unscaled = unscaled_of(text, *precision, *scale)?;
            put_decimal(unscaled, *size, &mut bytes).ok_or_else(wrong)?;
        }
        AvroNode::Uuid(_) => {
            let hex: Vec<u32> = text.chars().filter(|c| *c != '-').filter_map(|c| c.to_digit(16)).collect();
            if hex.len() != 32 || text.len() != 36 {
                return Err(wrong());
            }
            bytes.extend(hex.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8));
        }
        _ => return Err(wrong()),
    }
    Ok(bytes)
}
