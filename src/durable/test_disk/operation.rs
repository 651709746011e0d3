//! Operations on a disk, as disks of tests tell of them.

use std::fmt;
use std::path::PathBuf;

/// An operation on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOperation {
    /// Kind of the operation.
    pub kind: OperationKind,
    /// File or directory that it changes.
    pub path: PathBuf,
}

/// Kind of an operation on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// Lists the files of a directory, which changes nothing: no [`CrashingDisk`](super::CrashingDisk) counts it.
    List,
    /// Opens an existing file, which changes nothing either.
    Open,
    /// Creates a directory, durably.
    CreateDirectory,
    /// Creates an empty file.
    Create,
    /// Appends this number of bytes.
    Append(usize),
    /// Truncates a file to this number of bytes.
    Truncate(u64),
    /// Makes a file's bytes durable.
    Sync,
    /// Replaces a file's name with this one.
    Rename(PathBuf),
    /// Gives a file this additional name.
    Link(PathBuf),
    /// Removes a file.
    Remove,
    /// Makes the names in a directory durable.
    SyncDirectory,
    /// Locks a file.
    Lock,
    /// Writes the identity of a lock's holder into the file.
    Sign,
}

impl fmt::Display for DiskOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.kind {
            OperationKind::List => write!(f, "list the directory {path}"),
            OperationKind::Open => write!(f, "open {path}"),
            OperationKind::CreateDirectory => write!(f, "create the directory {path}"),
            OperationKind::Create => write!(f, "create {path}"),
            OperationKind::Append(bytes) => write!(f, "append {bytes} bytes to {path}"),
            OperationKind::Truncate(length) => write!(f, "cut {path} to {length} bytes"),
            OperationKind::Sync => write!(f, "sync {path}"),
            OperationKind::Rename(to) => write!(f, "rename {path} to {}", to.display()),
            OperationKind::Link(to) => write!(f, "link {path} to {}", to.display()),
            OperationKind::Remove => write!(f, "remove {path}"),
            OperationKind::SyncDirectory => write!(f, "sync the directory {path}"),
            OperationKind::Lock => write!(f, "lock {path}"),
            OperationKind::Sign => write!(f, "sign {path}"),
        }
    }
}
