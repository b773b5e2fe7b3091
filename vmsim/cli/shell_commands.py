"""The shell's commands: one row each."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from vmsim.cli.common import human_bytes, human_ns
from vmsim.guest.posix import GuestFs
from vmsim.machine import Machine

COPY_BYTES: Final = 1 << 20


class ShellError(Exception):
    """A command was used wrongly."""


class ShellExit(Exception):
    """The shell ends."""


class Session:
    """The machine that the shell is in; ``migrate`` puts another in its place."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @property
    def fs(self) -> GuestFs:
        """The guest's view of the share."""
        return self.machine.mount()

    def close(self) -> None:
        """End the machine."""
        self.machine.close()


Run = Callable[[Session, list[str]], None]


class Command(NamedTuple):
    """One command: its arguments and what it does, for help."""

    usage: str
    help: str
    run: Run


COMMANDS: Final[dict[str, Command]] = {}


def command(usage: str, text: str) -> Callable[[Run], Run]:
    """Register a command under the first word of its usage."""

    def register(run: Run) -> Run:
        COMMANDS[usage.split()[0]] = Command(usage, text, run)
        return run

    return register


def _paths(words: list[str], usage: str, least: int = 1, most: int | None = None) -> list[str]:
    if len(words) < least or (most is not None and len(words) > most):
        raise ShellError(f"usage: {usage}")
    return words


def _target(fs: GuestFs, source: str, target: str) -> str:
    """``target``, or the name of ``source`` in it if it is a directory."""
    try:
        is_folder = stat.S_ISDIR(fs.stat(target).st_mode)
    except FileNotFoundError:
        is_folder = False
    return f"{target.rstrip('/')}/{os.path.basename(source.rstrip('/'))}" if is_folder else target


def _line(name: str, status: os.stat_result, target: str) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
    arrow = f" -> {target}" if target else ""
    return (
        f"{stat.filemode(status.st_mode)} {status.st_nlink:>3} {status.st_uid:>5} {status.st_gid:>5} "
        f"{status.st_size:>10} {when} {name}{arrow}"
    )


@command("ls [-l] [-a] [PATH...]", "list directories")
def ls(session: Session, words: list[str]) -> None:
    """List; hidden names only with -a."""
    flags = "".join(word[1:] for word in words if word.startswith("-"))
    fs = session.fs
    paths = [word for word in words if not word.startswith("-")] or ["."]
    for path in paths:
        is_folder = stat.S_ISDIR(fs.stat(path).st_mode)
        if is_folder and len(paths) > 1:
            print(f"{path}:")
        names = sorted(fs.listdir(path)) if is_folder else [path]
        for name in names:
            if name.startswith(".") and is_folder and "a" not in flags:
                continue
            if "l" not in flags:
                print(name)
                continue
            full = f"{path.rstrip('/')}/{name}" if is_folder else name
            status = fs.lstat(full)
            print(_line(name, status, fs.readlink(full) if stat.S_ISLNK(status.st_mode) else ""))


@command("cat FILE...", "print files")
def cat(session: Session, words: list[str]) -> None:
    """Print."""
    for path in _paths(words, "cat FILE..."):
        with session.fs.open_file(path, "r", encoding="utf-8", errors="replace") as file:
            text = file.read()
            print(text, end="" if text.endswith("\n") or not text else "\n")


@command("echo [TEXT...] [> FILE | >> FILE]", "print a line, or write or append it to a file")
def echo(session: Session, words: list[str]) -> None:
    """Print or write."""
    for mark, mode in ((">>", "a"), (">", "w")):
        if mark in words:
            at = words.index(mark)
            target = _paths(words[at + 1 :], "echo TEXT > FILE", 1, 1)[0]
            with session.fs.open_file(target, mode, encoding="utf-8") as file:
                file.write(" ".join(words[:at]) + "\n")
            return
    print(" ".join(words))


@command("cp SOURCE TARGET", "copy a file")
def cp(session: Session, words: list[str]) -> None:
    """Copy contents and mode."""
    source, target = _paths(words, "cp SOURCE TARGET", 2, 2)
    fs = session.fs
    target = _target(fs, source, target)
    with fs.open_file(source, "rb") as read, fs.open_file(target, "wb") as write:
        while piece := read.read(COPY_BYTES):
            write.write(piece)
    fs.chmod(target, stat.S_IMODE(fs.stat(source).st_mode))


@command("mv SOURCE TARGET", "rename")
def mv(session: Session, words: list[str]) -> None:
    """Rename, into a directory if TARGET is one."""
    source, target = _paths(words, "mv SOURCE TARGET", 2, 2)
    session.fs.rename(source, _target(session.fs, source, target))


@command("rm [-r] PATH...", "remove files, with -r directories and all that is in them")
def rm(session: Session, words: list[str]) -> None:
    """Remove."""
    recursive = bool(words) and words[0] == "-r"
    for path in _paths(words[1:] if recursive else words, "rm [-r] PATH..."):
        if recursive:
            _remove_tree(session.fs, path)
        else:
            session.fs.unlink(path)


def _remove_tree(fs: GuestFs, path: str) -> None:
    if not stat.S_ISDIR(fs.lstat(path).st_mode):
        fs.unlink(path)
        return
    for name in fs.listdir(path):
        _remove_tree(fs, f"{path}/{name}")
    fs.rmdir(path)


@command("mkdir [-p] PATH...", "make directories, with -p those on the way, too")
def mkdir(session: Session, words: list[str]) -> None:
    """Make directories."""
    parents = bool(words) and words[0] == "-p"
    for path in _paths(words[1:] if parents else words, "mkdir [-p] PATH..."):
        if parents:
            session.fs.makedirs(path, exist_ok=True)
        else:
            session.fs.mkdir(path)


@command("rmdir PATH...", "remove empty directories")
def rmdir(session: Session, words: list[str]) -> None:
    """Remove empty directories."""
    for path in _paths(words, "rmdir PATH..."):
        session.fs.rmdir(path)


@command("ln [-s] TARGET NAME", "make a hard link, with -s a symlink")
def ln(session: Session, words: list[str]) -> None:
    """Link."""
    symbolic = bool(words) and words[0] == "-s"
    target, name = _paths(words[1:] if symbolic else words, "ln [-s] TARGET NAME", 2, 2)
    if symbolic:
        session.fs.symlink(target, name)
    else:
        session.fs.link(target, _target(session.fs, target, name))


@command("stat PATH...", "attributes")
def show_stat(session: Session, words: list[str]) -> None:
    """Print attributes."""
    for path in _paths(words, "stat PATH..."):
        status = session.fs.lstat(path)
        print(f"{path}: {stat.filemode(status.st_mode)} inode {status.st_ino}, {status.st_size} bytes, "
              f"{status.st_nlink} links, uid {status.st_uid}, gid {status.st_gid}, "
              f"modified {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(status.st_mtime))}")


@command("readlink NAME", "where a symlink points")
def readlink(session: Session, words: list[str]) -> None:
    """Print the target."""
    print(session.fs.readlink(_paths(words, "readlink NAME", 1, 1)[0]))


@command("touch FILE...", "make empty files, or set their times to now")
def touch(session: Session, words: list[str]) -> None:
    """Create or update."""
    for path in _paths(words, "touch FILE..."):
        session.fs.close(session.fs.open(path, os.O_WRONLY | os.O_CREAT, 0o666))
        session.fs.utime(path)


@command("chmod MODE PATH...", "change permissions; MODE is octal")
def chmod(session: Session, words: list[str]) -> None:
    """Change permissions."""
    mode, *paths = _paths(words, "chmod MODE PATH...", 2)
    for path in paths:
        session.fs.chmod(path, int(mode, 8))


@command("truncate SIZE FILE...", "set the size of files")
def truncate(session: Session, words: list[str]) -> None:
    """Change the size."""
    size, *paths = _paths(words, "truncate SIZE FILE...", 2)
    for path in paths:
        session.fs.truncate(path, int(size))


@command("cd [PATH]", "change the working directory")
def cd(session: Session, words: list[str]) -> None:
    """Change the working directory."""
    session.fs.chdir(_paths(words or ["/"], "cd [PATH]", 1, 1)[0])


@command("pwd", "the working directory")
def pwd(session: Session, words: list[str]) -> None:
    """Print it."""
    print(session.fs.getcwd())


@command("df", "space of the file system")
def df(session: Session, words: list[str]) -> None:
    """Print sizes."""
    space = session.fs.statvfs("/")
    size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
    print(f"{human_bytes(size)} in all, {human_bytes(free)} available, {space.f_ffree} inodes free")


@command("migrate", "migrate the machine, live, and go on in the new one")
def migrate(session: Session, words: list[str]) -> None:
    """Migrate."""
    began = time.monotonic_ns()
    session.machine = machine = session.machine.migrate()
    facts, stats = machine.facts(), machine.migration_stats
    assert stats is not None
    print(f"migrated in {human_ns(time.monotonic_ns() - began)}: {human_bytes(stats.stream_bytes)}, "
          f"{len(stats.rounds)} rounds, {facts['inodes']} inodes, {facts['handles']} handles")


@command("check", "will it migrate? what would not survive, and why")
def check(session: Session, words: list[str]) -> None:
    """Print the findings of the pre-flight check."""
    findings = session.machine.preflight()
    for finding in findings:
        print(finding)
    if not findings:
        print("everything would survive a migration")


@command("save FILE", "save the machine to a file of the host")
def save(session: Session, words: list[str]) -> None:
    """Save, and go on."""
    path = _paths(words, "save FILE", 1, 1)[0]
    stats = session.machine.save(path)
    print(f"saved: {path}, {human_bytes(stats.stream_bytes)}")


@command("rings", "the virtqueues: sizes, addresses, notifications")
def rings(session: Session, words: list[str]) -> None:
    """Print the queues."""
    device = session.machine.device.virtio
    for index, queue in enumerate(device.queues):
        name = "hiprio" if index == 0 else f"requests.{index - 1}"
        state = "ready" if queue.ready else "not ready"
        print(f"{index} {name:<11} {session.machine.config.ring}, {queue.size} entries, {state}, "
              f"desc {queue.desc:#x}, driver {queue.driver:#x}, device {queue.device:#x}, "
              f"{queue.notifications} notifications")


@command("inodes", "what the back-end knows: inodes with their lookup counts, open handles")
def inodes(session: Session, words: list[str]) -> None:
    """Print the back-end's tables."""
    for line in session.machine.backend.type.describe(session.machine.backend.served):
        print(line)


@command("help", "this list")
def show_help(session: Session, words: list[str]) -> None:
    """Print the commands."""
    width = max(len(each.usage) for each in COMMANDS.values())
    for each in COMMANDS.values():
        print(f"{each.usage:<{width}}  {each.help}")


@command("exit", "end the guest")
def leave(session: Session, words: list[str]) -> None:
    """End."""
    raise ShellExit
