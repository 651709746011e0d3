//! Reading of all that is in a state's directory, to decide from what it resumes or to show it.
//!
//! Invariants: before an incarnation builds on what was read, all of it survives a loss of power. Bytes that an
//! incarnation wrote without a confirmed sync are accepted by the next one only in a new copy: a sync that failed in the
//! older incarnation may have dropped them, and a later sync of the same file would report success.

use std::collections::BTreeMap;
use std::io;

use super::directory::StateDir;
use super::identity::DIRECTORIES;
use super::incarnation_records::{incarnation_of_claim, read_claim};
use crate::durable::disk::is_temporary;
use crate::durable::disk_error;
use crate::durable::journal::{FileId, JournalFile};
use crate::durable::manifest::{Manifest, ManifestId};
use crate::durable::recovery::StateScan;
use crate::error::{Error, Result};

impl StateDir {
    /// Reads the directory, and makes everything in it survive a loss of power: only then may an incarnation build on
    /// it. Journals since the last claim are replaced by new copies.
    ///
    /// # Errors
    /// Fails if a disk operation fails. Damaged files are part of the result.
    pub(crate) fn scan_and_sync(&self) -> Result<StateScan> {
        self.look_at(true, true)
    }

    /// Like [`StateDir::scan_and_sync`], but for inspection: nothing is synced or copied. Without `journals` those are
    /// left out.
    ///
    /// # Errors
    /// Fails if a disk operation fails. Damaged files are part of the result.
    pub(crate) fn scan(&self, journals: bool) -> Result<StateScan> {
        self.look_at(journals, false)
    }

    fn look_at(&self, journals: bool, sync: bool) -> Result<StateScan> {
        let mut scan = StateScan::default();
        let cannot = self.cannot("read");
        let mut written = BTreeMap::new();
        for directory in DIRECTORIES {
            let names = self.disk.list(&self.path.join(directory)).map_err(&cannot)?;
            let unfinished = names.iter().filter(|name| is_temporary(name));
            scan.unfinished.extend(unfinished.map(|name| format!("{directory}/{name}")));
            match directory {
                "journal" if journals => {
                    for id in names.iter().filter_map(|name| FileId::parse(name)) {
                        let read = |bytes: &[u8]| {
                            let file = JournalFile::read(self.id, id, bytes)?;
                            if sync {
                                written.insert(id, bytes.to_vec());
                            }
                            Ok(file)
                        };
                        scan.journals.extend(self.read(directory, &id.to_string(), sync, read)?.map(|file| (id, file)));
                    }
                }
                "manifests" => {
                    for id in names.iter().filter_map(|name| ManifestId::parse(name)) {
                        let read = |bytes: &[u8]| Manifest::read(self.id, id, bytes);
                        scan.manifests
                            .extend(self.read(directory, &id.to_string(), sync, read)?.map(|file| (id, file)));
                    }
                }
                "segments" => scan.segments.extend(names.into_iter().filter(|name| !is_temporary(name))),
                _ => {}
            }
        }
        let names = self.disk.list(&self.path).map_err(&cannot)?;
        scan.unfinished.extend(names.into_iter().filter(|name| is_temporary(name)));
        // Claims are read last: if files of an incarnation were seen, so is its claim.
        let names = self.disk.list(&self.records_path()).map_err(&cannot)?;
        for (name, number) in names.iter().filter_map(|name| Some((name, incarnation_of_claim(name)?))) {
            let read = |bytes: &[u8]| read_claim(self.id, number, bytes);
            scan.claims.extend(self.read("lives", name, sync, read)?.map(|claim| (number, claim)));
        }
        // Journals of earlier incarnations were copied by the incarnation that claimed them.
        let last = scan.claims.last_key_value().map_or(0, |(incarnation, _)| *incarnation);
        written.retain(|id, _| id.incarnation >= last);
        for (id, bytes) in written {
            let path = self.journal().join(id.to_string());
            let copied = self.disk.replace(&path, &bytes);
            copied.map_err(|why| disk_error("cannot write a file of the journal anew", path.display(), why))?;
        }
        if sync {
            for directory in DIRECTORIES {
                self.disk.sync_directory(&self.path.join(directory)).map_err(&cannot)?;
            }
            self.disk.sync_directory(&self.path).map_err(&cannot)?;
        }
        Ok(scan)
    }

    /// Reads a file, and syncs it if `sync`; `None` if it does not exist any more.
    pub(super) fn read<T>(
        &self,
        directory: &str,
        name: &str,
        sync: bool,
        mut read: impl FnMut(&[u8]) -> Result<T>,
    ) -> Result<Option<std::result::Result<T, Error>>> {
        let path = self.path.join(directory).join(name);
        let bytes = self.disk.read(&path).and_then(|bytes| {
            if sync {
                self.disk.open(&path)?.sync()?;
            }
            Ok(bytes)
        });
        match bytes {
            // An older incarnation removes superfluous files.
            Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(why) => Err(disk_error("cannot read a file of the state", path.display(), why)),
            Ok(bytes) => Ok(Some(read(&bytes).map_err(|why| why.at(format!("{directory}/{name}"))))),
        }
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// Fails if it is missing, damaged or of another state, or if a disk operation fails.
    pub(crate) fn manifest(&self, id: ManifestId) -> Result<Manifest> {
        let path = self.manifests().join(id.to_string());
        let bytes = self.disk.read(&path);
        let bytes = bytes.map_err(|why| disk_error("cannot read the manifest", path.display(), why))?;
        Manifest::read(self.id, id, &bytes)
    }
}
