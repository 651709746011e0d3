//! Devices and pipes as results files: they have no length, no lock and no commit, and are written to as they are.

use std::fs;
use std::io::{self, Write as _};

use crate::durable::disk::DiskFile;

/// A device or a pipe: written bytes cannot be read back.
#[derive(Debug)]
pub(super) struct DeviceFile {
    pub(super) file: fs::File,
    pub(super) written: u64,
}

impl DiskFile for DeviceFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.written)
    }

    fn read_at(&self, _position: u64, _bytes: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written += count as u64;
                    bytes = &bytes[count..];
                }
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        if length == self.written { Ok(()) } else { Err(io::Error::other("it is no file")) }
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
