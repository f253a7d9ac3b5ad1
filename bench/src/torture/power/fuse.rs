//! What the kernel asks, answered from the image.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::image::{Attributes, Image};

/// Nobody else changes names: the kernel may remember them.
const NAMES_STAY: Duration = Duration::from_secs(3600);
/// Lengths change under it, and so do blocks: it asks.
const ATTRIBUTES_STAY: Duration = Duration::ZERO;
/// The most that is written at once.
const MAX_WRITE_BYTES: u32 = 1 << 20;

/// Mounts an image. Done with when it is unmounted.
pub(super) fn mount(
    image: &Arc<Image>,
    mount_point: &Path,
    threads: usize,
) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.n_threads = Some(threads);
    config.mount_options = vec![
        MountOption::FSName("varve-torture".to_owned()),
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
    ];
    let server = Server {
        image: image.clone(),
        open: Mutex::default(),
    };
    fuser::spawn_mount(server, mount_point, &config)
}

/// What a directory had when it was opened.
type Listing = Vec<(u64, FileType, OsString)>;

#[derive(Debug, Default)]
struct Open {
    next: u64,
    listings: BTreeMap<u64, Listing>,
    /// Threads whose last write through a handle was a durable one: the kernel sends a
    /// sync of the whole file after it, which the program never asked for.
    durable_writers: BTreeSet<(u64, u32)>,
}

#[derive(Debug)]
struct Server {
    image: Arc<Image>,
    open: Mutex<Open>,
}

impl Server {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self) -> u64 {
        let mut open = self.open();
        open.next += 1;
        open.next
    }

    fn attributes(&self, request: &Request, inode: u64) -> io::Result<FileAttr> {
        let Attributes {
            is_directory,
            length,
            blocks,
            mode,
        } = self.image.attributes(inode)?;
        let now = SystemTime::now();
        Ok(FileAttr {
            ino: INodeNo(inode),
            size: length,
            blocks,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            kind: kind(is_directory),
            perm: mode as u16,
            nlink: if is_directory { 2 } else { 1 },
            uid: request.uid(),
            gid: request.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    /// A name's file or directory, which the kernel then has a reference to.
    fn entry(&self, request: &Request, inode: u64) -> io::Result<FileAttr> {
        let attributes = self.attributes(request, inode)?;
        self.image.names().learn(inode);
        Ok(attributes)
    }

    fn write_bytes(
        &self,
        by: (u64, u32),
        inode: u64,
        offset: u64,
        data: &[u8],
        flags: OpenFlags,
    ) -> io::Result<()> {
        let file = self.image.file(inode)?;
        let mark = self.image.again_with_space(|| file.write(offset, data))?;
        let is_durable = OFlags::from_bits_retain(flags.0 as u32).contains(OFlags::DSYNC);
        if is_durable {
            self.image
                .sync_range(inode, offset, data.len() as u64, mark)?;
            self.open().durable_writers.insert(by);
        }
        Ok(())
    }

    fn sync(&self, by: (u64, u32), inode: u64) -> io::Result<()> {
        match self.open().durable_writers.remove(&by) {
            true => Ok(()),
            false => self.image.sync(inode),
        }
    }

    fn list(&self, inode: u64) -> io::Result<Listing> {
        let names = self.image.names();
        let found = names.list(inode).ok_or(rustix::io::Errno::NOTDIR)?;
        let entry = |(name, inode): (&OsString, &u64)| {
            let is_directory = names.directory_mode(*inode).is_some();
            (*inode, kind(is_directory), name.clone())
        };
        let itself = [".", ".."].map(|name| (inode, FileType::Directory, name.into()));
        Ok(itself.into_iter().chain(found.iter().map(entry)).collect())
    }

    fn set(&self, inode: u64, mode: Option<u32>, length: Option<u64>) -> io::Result<()> {
        if let Some(mode) = mode {
            self.image.set_mode(inode, mode)?;
        }
        if let Some(length) = length {
            self.image.file(inode)?.set_length(length)?;
        }
        Ok(())
    }

    fn allocate(&self, inode: u64, offset: u64, length: u64, mode: i32) -> io::Result<()> {
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let range = offset..offset.saturating_add(length);
        if !known.contains(flags) {
            return Err(rustix::io::Errno::OPNOTSUPP.into());
        }
        let file = self.image.file(inode)?;
        self.image
            .again_with_space(|| file.allocate(flags, range.clone()))
    }

    fn seek(&self, inode: u64, offset: i64, whence: i32) -> io::Result<u64> {
        let (file, offset) = (self.image.file(inode)?, offset as u64);
        let from = match whence {
            3 => SeekFrom::Data(offset),
            4 => SeekFrom::Hole(offset),
            _ => return Err(rustix::io::Errno::INVAL.into()),
        };
        Ok(rustix::fs::seek(file.file(), from)?)
    }
}

fn kind(is_directory: bool) -> FileType {
    match is_directory {
        true => FileType::Directory,
        false => FileType::RegularFile,
    }
}

fn empty(reply: ReplyEmpty, result: io::Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error.into()),
    }
}

fn entry(reply: ReplyEntry, result: io::Result<FileAttr>) {
    match result {
        Ok(attributes) => {
            reply.entry_with_ttls(&NAMES_STAY, &ATTRIBUTES_STAY, &attributes, Generation(0));
        }
        Err(error) => reply.error(error.into()),
    }
}

fn attributes(reply: ReplyAttr, result: io::Result<FileAttr>) {
    match result {
        Ok(attributes) => reply.attr(&ATTRIBUTES_STAY, &attributes),
        Err(error) => reply.error(error.into()),
    }
}

/// The kernel's page cache stays in between (no direct I/O is forced, so that files can be
/// mapped), but not its write-back cache: each write(2) comes at once.
impl Filesystem for Server {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // The nearest that it takes is as good.
        let _ = config.set_max_write(MAX_WRITE_BYTES);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.image.lookup(parent.0, name);
        entry(reply, found.and_then(|inode| self.entry(request, inode)));
    }

    fn forget(&self, _request: &Request, inode: INodeNo, count: u64) {
        self.image.forget(inode.0, count);
    }

    fn getattr(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        attributes(reply, self.attributes(request, inode.0));
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.set(inode.0, mode, size);
        attributes(reply, set.and_then(|()| self.attributes(request, inode.0)));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let made = self.image.make_directory(parent.0, name, mode);
        entry(reply, made.and_then(|inode| self.entry(request, inode)));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.image.remove(parent.0, name, false));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.image.remove(parent.0, name, true));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !RenameFlags::RENAME_NOREPLACE.contains(flags) {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = ((parent.0, name), (new_parent.0, new_name));
        empty(reply, self.image.rename(from, to, flags.is_empty()));
    }

    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // What was read before is as good as ever: all changes come this way.
        reply.opened(FileHandle(self.handle()), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.image.create(parent.0, name, mode);
        match made.and_then(|inode| self.entry(request, inode)) {
            Ok(attributes) => reply.created(
                &ATTRIBUTES_STAY,
                &attributes,
                Generation(0),
                FileHandle(self.handle()),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(error) => reply.error(error.into()),
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = self.image.file(inode.0);
        match file.and_then(|file| file.read(offset, size as usize)) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The kernel's own write-back is nobody's durable write.
        let flags = match write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            true => OpenFlags(0),
            false => flags,
        };
        let by = (handle.0, request.pid());
        match self.write_bytes(by, inode.0, offset, data, flags) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let writers = &mut self.open().durable_writers;
        writers.retain(|(of, _)| *of != handle.0);
        reply.ok();
    }

    fn fsync(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.sync((handle.0, request.pid()), inode.0));
    }

    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.list(inode.0) {
            Ok(listing) => {
                let handle = self.handle();
                self.open().listings.insert(handle, listing);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let open = self.open();
        let listing = open.listings.get(&handle.0).map_or(&[][..], Vec::as_slice);
        let left = listing.iter().zip(1..).skip(offset as usize);
        for ((inode, kind, name), next) in left {
            if reply.add(INodeNo(*inode), next, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.open().listings.remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.image.sync_directory(inode.0));
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        match rustix::fs::statvfs(self.image.folder()) {
            Ok(s) => reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                s.f_namemax as u32,
                s.f_frsize as u32,
            ),
            Err(error) => reply.error(io::Error::from(error).into()),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.allocate(inode.0, offset, length, mode));
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match self.seek(inode.0, offset, whence) {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(error.into()),
        }
    }
}
