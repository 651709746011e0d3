//! Reads a segment block by block; each block is verified before it is used.

use std::any::TypeId;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable::codec::{AlignedBytes, BlockRows, Codec, CodecId, DynamicValue, RowEncoding, Schema};
use crate::durable::disk::{Disk, DiskFile};
use crate::durable::segment::SegmentInfo;
#[cfg(test)]
use crate::durable::segment::SegmentLabel;
use crate::durable::segment::format::{self, BlockInfo, CHECKSUM, END, RESTORE_FILE, START, damaged};
use crate::error::{Error, ErrorKind, Result};

/// A reader of one segment, whose header and footer are verified.
#[derive(Debug)]
pub(crate) struct SegmentReader {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    #[cfg(test)]
    label: SegmentLabel,
    encoding: RowEncoding,
    info: SegmentInfo,
    blocks: Vec<BlockInfo>,
    /// Position of each block in the file.
    positions: Vec<u64>,
    /// The row type and codec that were accepted last: the check takes a while.
    accepted: Option<(TypeId, CodecId)>,
    stored: Vec<u8>,
    raw: AlignedBytes,
}

impl SegmentReader {
    /// Opens a segment, and verifies everything except its blocks.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is damaged, or has another format version.
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> Result<Self> {
        let file = disk.open(path).map_err(|why| unreadable(path, why))?;
        let length = file.length().map_err(|why| unreadable(path, why))?;
        let mut start = vec![0; usize::try_from(length).unwrap_or(START).min(START)];
        read(&*file, path, 0, &mut start)?;
        let (version, header_length) = format::decode_start(&start, path)?;
        let header_length = u64::from(header_length) + CHECKSUM as u64;
        let blocks_at = START as u64 + header_length;
        let end_at = length.checked_sub(END as u64).filter(|end_at| *end_at >= blocks_at);
        let end_at = end_at.ok_or_else(|| damaged(path, "it is too short to have a header and an end"))?;

        let header = read_some(&*file, path, START as u64, header_length)?;
        let header = format::decode_header(version, &header, path)?;
        let mut end = [0; END];
        read(&*file, path, end_at, &mut end)?;
        let (footer_length, checksum) = format::decode_end(&end, path)?;
        let footer_at = end_at.checked_sub(footer_length).filter(|footer_at| *footer_at >= blocks_at);
        let footer_at = footer_at.ok_or_else(|| damaged(path, "it is too short to have the footer that it names"))?;
        let footer = read_some(&*file, path, footer_at, footer_length)?;
        let footer = format::decode_footer(&footer, checksum, path)?;
        footer.check(footer_at - blocks_at).map_err(|why| damaged(path, why))?;

        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (encoding, label) = (header.encoding(), header.into_label());
        let info = footer.info(&label, name, length, checksum);
        let position = |next: &mut u64, block: &BlockInfo| {
            let position = *next;
            *next += u64::from(block.stored_length);
            Some(position)
        };
        let positions = footer.blocks.iter().scan(blocks_at, position).collect();
        Ok(SegmentReader {
            path: path.to_owned(),
            file,
            encoding,
            #[cfg(test)]
            label,
            info,
            blocks: footer.blocks,
            positions,
            accepted: None,
            stored: Vec::new(),
            raw: AlignedBytes::default(),
        })
    }

    /// Opens the segment that a manifest names, and verifies that the file is that segment.
    ///
    /// # Errors
    /// Fails like [`SegmentReader::open`], and if the file is not the named segment.
    pub(crate) fn open_named(disk: &dyn Disk, directory: &Path, named: &SegmentInfo) -> Result<Self> {
        let path = directory.join(&named.file);
        let reader = SegmentReader::open(disk, &path)?;
        // The step may have got another name since.
        let own = SegmentInfo { step: named.step.clone(), ..reader.info.clone() };
        if own != *named {
            return Err(damaged(&path, "it is a segment, but not the one that was written under this name"));
        }
        Ok(reader)
    }

    /// The origin of the rows.
    #[cfg(test)]
    pub(crate) fn label(&self) -> &SegmentLabel {
        &self.label
    }

    /// The segment's description, as a manifest stores it.
    #[cfg(test)]
    pub(crate) fn info(&self) -> &SegmentInfo {
        &self.info
    }

    /// The coding of the rows.
    pub(crate) fn encoding(&self) -> &RowEncoding {
        &self.encoding
    }

    /// The blocks, in the order of their rows.
    pub(crate) fn blocks(&self) -> &[BlockInfo] {
        &self.blocks
    }

    /// Checks that `codec` can decode the rows.
    ///
    /// # Errors
    /// Fails if they were written by another codec or as another type.
    pub(crate) fn check_codec<T: 'static>(&self, codec: &dyn Codec<T>) -> Result<()> {
        codec.can_read(&self.encoding).map_err(|refused| refused.at(self.path.display()))
    }

    fn accept_once<T: 'static>(&mut self, codec: &dyn Codec<T>) -> Result<()> {
        let who = Some((TypeId::of::<T>(), codec.id()));
        if self.accepted != who {
            self.check_codec(codec)?;
            self.accepted = who;
        }
        Ok(())
    }

    /// Returns the rows of a block, in order; they are read in place if the codec can.
    ///
    /// # Errors
    /// Fails if the block is damaged, or if the rows do not match the codec.
    pub(crate) fn open_block<T: 'static>(&mut self, block: usize, codec: &dyn Codec<T>) -> Result<BlockRows<T>> {
        self.accept_once(codec)?;
        let rows = self.load(block)?;
        let opened = codec.open(std::mem::take(&mut self.raw), rows);
        opened.map_err(|why| self.refuse(block, why))
    }

    /// Appends the rows of a block to `out`, in order; on failure `out` is unchanged.
    ///
    /// # Errors
    /// Fails if the block is damaged, or if the rows do not match the codec.
    pub(crate) fn read_block<T: 'static>(
        &mut self,
        block: usize,
        codec: &dyn Codec<T>,
        out: &mut Vec<T>,
    ) -> Result<()> {
        self.accept_once(codec)?;
        let rows = self.load(block)?;
        let before = out.len();
        match codec.decode(std::mem::take(&mut self.raw), rows, out) {
            Ok(raw) => {
                self.raw = raw;
                Ok(())
            }
            Err(why) => {
                out.truncate(before);
                Err(self.refuse(block, why))
            }
        }
    }

    /// Appends the rows of a block to `out`, converted to the type of the codec, in the order in which they were written.
    ///
    /// # Errors
    /// Fails if the block is damaged, or if a row cannot be converted.
    pub(crate) fn convert_block<T: 'static>(
        &mut self,
        block: usize,
        codec: &dyn Codec<T>,
        out: &mut Vec<T>,
    ) -> Result<()> {
        let rows = self.load(block)?;
        let converted = codec.convert(&self.encoding, std::mem::take(&mut self.raw), rows, out);
        converted.map_err(|why| {
            let error = Error::of(ErrorKind::StateIncompatible, "cannot convert a segment's rows");
            error
                .at(self.path.display())
                .because(why)
                .help("run the program that wrote them, or correct the conversion")
        })
    }

    /// Returns the rows of a block as values, for callers that do not know their type.
    ///
    /// # Errors
    /// Fails if the block is damaged, or if its rows cannot be decoded without their type.
    pub(crate) fn values(&mut self, block: usize) -> Result<Vec<DynamicValue>> {
        let cannot = Error::new("cannot show the rows of a segment").at(self.path.display());
        if self.encoding.codec != CodecId::POSTCARD {
            let why = format!("they were written by {}, as they lay in memory", self.encoding.codec);
            return Err(cannot.because(why).help("only the program that wrote them can read them"));
        }
        if self.encoding.schema == Schema::Unknown {
            let why = "it was written by a version of Tidegate that did not say what rows consist of";
            return Err(cannot.because(why).help("run the job again for a while: its next segments say it"));
        }
        let count = self.load(block)?;
        let mut bytes = self.raw.as_slice();
        let mut values = Vec::with_capacity((count as usize).min(bytes.len()));
        for number in 0..count {
            match self.encoding.schema.read(&mut bytes) {
                Ok(value) => values.push(value),
                Err(why) => return Err(cannot.because(format!("row {number} of block {block}: {why}"))),
            }
        }
        if bytes.is_empty() {
            return Ok(values);
        }
        Err(self.refuse(block, format!("{} bytes are behind its last row", bytes.len())))
    }

    /// Reads, verifies and decompresses a block into `buffer`; returns its number of rows.
    fn load(&mut self, block: usize) -> Result<u32> {
        let BlockInfo { stored_length, raw_length, rows, checksum, .. } = self.blocks[block];
        self.stored.resize(stored_length as usize, 0);
        read(&*self.file, &self.path, self.positions[block], &mut self.stored)?;
        if crc32fast::hash(&self.stored) != checksum {
            return Err(self.refuse(block, "its checksum is wrong"));
        }
        self.raw.resize(raw_length as usize);
        if stored_length == raw_length {
            self.raw.as_mut_slice().copy_from_slice(&self.stored);
            return Ok(rows);
        }
        match lz4_flex::block::decompress_into(&self.stored, self.raw.as_mut_slice()) {
            Ok(length) if length == raw_length as usize => Ok(rows),
            Ok(length) => Err(self.refuse(block, format!("{length} bytes come out of it, not {raw_length}"))),
            Err(why) => Err(self.refuse(block, why)),
        }
    }

    /// The error for a damaged block.
    pub(in crate::durable) fn refuse(&self, block: usize, why: impl std::fmt::Display) -> Error {
        damaged(&self.path, format!("block {block} of {}: {why}", self.blocks.len()))
    }
}

/// Verifies every checksum of a segment, without decoding its rows.
///
/// # Errors
/// Fails like [`SegmentReader::open`], and if a block is damaged.
pub(crate) fn verify(disk: &dyn Disk, path: &Path) -> Result<SegmentInfo> {
    let mut reader = SegmentReader::open(disk, path)?;
    for block in 0..reader.blocks.len() {
        reader.load(block)?;
    }
    Ok(reader.info)
}

fn read(file: &dyn DiskFile, path: &Path, position: u64, bytes: &mut [u8]) -> Result<()> {
    file.read_at(position, bytes).map_err(|why| unreadable(path, why))
}

/// Reads `length` bytes, which must be in the file.
fn read_some(file: &dyn DiskFile, path: &Path, position: u64, length: u64) -> Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(|why| damaged(path, why))?;
    let mut bytes = vec![0; length];
    read(file, path, position, &mut bytes)?;
    Ok(bytes)
}

fn unreadable(path: &Path, why: io::Error) -> Error {
    let help = if why.kind() == io::ErrorKind::NotFound { RESTORE_FILE } else { "see to the disk and start again" };
    Error::of(ErrorKind::StateDamaged, "cannot read a segment").at(path.display()).caused_by(why).help(help)
}
