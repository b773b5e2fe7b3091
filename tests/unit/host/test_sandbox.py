"""Sandboxes, really entered, each in a process of its own: what is seen there, what is left, how it ends."""

import ast
import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from vmsim.errors import UsageError
from vmsim.host import capabilities
from vmsim.host.sandbox import IdMap

ROOT = os.geteuid() == 0
CAP_SYS_ADMIN, CAP_SYS_CHROOT = 21, 18

PRELUDE = """
import os, signal, sys, time, traceback
from vmsim.host import capabilities, sandbox
from vmsim.host.sandbox import IdMap, Sandbox, run

# Who runs the tests may ignore it, as a shell's background job does.
signal.signal(signal.SIGINT, signal.default_int_handler)

def confined(serve, **more):
    def told(place):
        try:
            return serve(place)
        except BaseException:
            traceback.print_exc()
            return 99
    return run(Sandbox(KIND, SHARE, **more), told)
"""


def permitted(bit):
    with open("/proc/self/status") as lines:
        effective = next(line for line in lines if line.startswith("CapEff"))
    return int(effective.split()[1], 16) >> bit & 1


def needs(kind):
    """Skip where the system cannot have this kind of sandbox."""
    if kind == "chroot" and not permitted(CAP_SYS_CHROOT):
        pytest.skip("chroot needs CAP_SYS_CHROOT")
    if kind == "namespace" and ROOT and not permitted(CAP_SYS_ADMIN):
        pytest.skip("namespaces need CAP_SYS_ADMIN")
    if kind == "namespace" and not ROOT and subprocess.call(["unshare", "-U", "true"], stderr=-3):
        pytest.skip("this system has no user namespaces for users")


@pytest.fixture
def share(tmp_path):
    folder = tmp_path / "share"
    (folder / "sub").mkdir(parents=True)
    (folder / "hello").write_text("hello")
    (tmp_path / "secret").write_text("secret")
    return folder


def python(kind, share, body, **popen):
    """Start ``body`` in a new interpreter; KIND and SHARE are what it may use."""
    text = f"KIND, SHARE = {kind!r}, {str(share)!r}\n{PRELUDE}\n{textwrap.dedent(body)}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", text], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment, **popen,
    )  # fmt: skip


def said(kind, share, body, status=0, **popen):
    """What ``body`` prints, line by line, as Python values."""
    needs(kind)
    with python(kind, share, body, **popen) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    return [ast.literal_eval(line) for line in out.splitlines()]


both = pytest.mark.parametrize("kind", ["namespace", "chroot"])


@both
def test_nothing_outside_can_be_opened(kind, share):
    body = f"""
    def serve(place):
        for path in ("/etc/passwd", "/proc/sys/kernel/hostname", "/usr", {str(share / "hello")!r},
                     "../" * 20 + "etc/passwd", "../" * 20 + "usr", place.share + "/../secret"):
            try:
                os.close(os.open(path, os.O_RDONLY))
                print(repr(path))
            except FileNotFoundError:
                pass
        print(sorted(os.listdir(place.share)))
        return 0
    sys.exit(confined(serve))
    """
    assert said(kind, share, body) == [["hello", "sub"]]


def test_the_root_of_a_namespace_is_read_only_and_not_the_share(share):
    body = """
    def serve(place):
        try:
            os.mkdir("/new")
        except OSError as error:
            print(error.errno)
        print((len(os.listdir("/")), os.listdir("/proc"), sorted(os.listdir("/proc/self")), os.getpid()))
        return 0
    sys.exit(confined(serve))
    """
    names = ["fd", "mountinfo", "status"]
    assert said("namespace", share, body) == [errno.EROFS, (2, ["self"], names, 1)]


@both
@pytest.mark.skipif(not ROOT, reason="needs root: somebody else has no capabilities to lose")
def test_only_these_capabilities_are_left(kind, share):
    body = """
    def serve(place):
        with open(place.proc + b"/status") as lines:
            facts = dict(line.rstrip("\\n").split(":\\t") for line in lines if ":\\t" in line)
        for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
            print(int(facts[name], 16))
        print((facts["NoNewPrivs"], facts["Groups"].strip(), facts["Umask"]))
        return 0
    keep = capabilities.changed(capabilities.SERVING, "+dac_read_search:-chown")
    sys.exit(confined(serve, keep=keep))
    """
    # Of virtiofsd 1.13.2 it is 0x880000db: here without CHOWN (0), with DAC_READ_SEARCH (2).
    left, facts = 0x880000DE, ("1", "", "0000")
    assert said(kind, share, body, extra_groups=[4, 20]) == [left, left, 0, 0, 0, facts]


@pytest.mark.skipif(not ROOT, reason="needs root")
def test_without_a_sandbox_capabilities_are_dropped_all_the_same(share):
    body = """
    def serve(place):
        with open(place.proc + b"/status") as lines:
            print(next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff")))
        print(repr(place.share))
        return 0
    sys.exit(confined(serve))
    """
    assert said("none", share, body) == [0x880000DB, str(share)]


@pytest.mark.skipif(not ROOT, reason="needs root: a range of ids is not for everybody")
def test_a_user_namespace_with_mapped_ids(share):
    share.chmod(0o777)
    share.parent.chmod(0o755)
    body = """
    def serve(place):
        os.close(os.open(place.share + "/made", os.O_CREAT | os.O_WRONLY))
        print((os.getuid(), os.getgid(), os.stat(place.share + "/made").st_uid))
        return 0
    sys.exit(confined(serve, uid_maps=(IdMap(0, 100000, 10),), gid_maps=(IdMap(0, 200000, 10),)))
    """
    assert said("namespace", share, body) == [(0, 0, 0)]
    made = (share / "made").stat()
    assert (made.st_uid, made.st_gid) == (100000, 200000)


SERVER = """
from devices.virtio_fs.passthrough.fs import PassthroughFs
from vmsim.host.fs import LinuxFs

def serve(place):
    host = LinuxFs(place.proc)
    fs = PassthroughFs(host, place.share)
    print(fs.by_handle)
    root = fs.root.fd
    made = host.open_beneath(root, b"made", os.O_CREAT | os.O_RDWR, 0o640)
    print(host.path_of(made).endswith(b"/made"))
    again = host.reopen(made, os.O_RDWR)
    os.write(again, b"written")
    print(os.pread(made, 100, 0))
    host.chmod(made, 0o600)
    host.link(made, root, b"second")
    host.mknod(root, b"fifo", 0o10644, 0, 0)
    fifo = host.open_beneath(root, b"fifo", os.O_PATH)
    print(host.listxattr(fifo))
    host.setxattr(made, b"user.one", b"1", 0)
    print(host.getxattr(made, b"user.one"))
    mount, kind, raw = host.file_handle(made)
    print(os.pread(host.open_handle(root, kind, raw, os.O_RDONLY), 100, 0))
    print(mount in dict(host.mount_points()) or KIND == "chroot")  # where the share is not a mount of its own
    return 0
sys.exit(confined(serve, keep=capabilities.SERVING | {"dac_read_search"}))
"""


@both
@pytest.mark.skipif(not ROOT, reason="needs root: file handles")
def test_the_file_server_works_inside(kind, share):
    assert said(kind, share, SERVER) == [True, True, b"written", [], b"1", b"written", True]
    assert (share / "second").read_bytes() == b"written"
    assert (share / "made").stat().st_mode == 0o100600
    assert (share / "fifo").is_fifo()


@both
def test_descriptors_from_before_stay_open(kind, share):
    body = f"""
    before = os.open({str(share.parent / "secret")!r}, os.O_RDONLY)
    def serve(place):
        print(os.read(before, 100))
        return 0
    sys.exit(confined(serve))
    """
    assert said(kind, share, body) == [b"secret"]


@both
def test_a_guests_file_is_never_taken_for_a_module(kind, share):
    body = """
    import importlib
    folder = next(path for path in sys.path if path and os.path.isdir(path))
    os.makedirs(SHARE + folder)
    for name in (SHARE + folder, SHARE):
        with open(name + "/planted.py", "w") as file:
            file.write("print('planted')")
    sys.path.append("/")
    importlib.invalidate_caches()
    def serve(place):
        try:
            import planted
        except ModuleNotFoundError:
            return 0
        return 1
    sys.exit(confined(serve))
    """
    assert said(kind, share, body) == []


@both
def test_the_status_and_a_killed_server(kind, share):
    assert said(kind, share, "sys.exit(confined(lambda place: 7))", status=7) == []
    body = """
    import ctypes
    sys.exit(confined(lambda place: ctypes.string_at(0)))
    """
    # The kernel kills even the first process of a namespace for this.
    assert said(kind, share, body, status=128 + signal.SIGSEGV) == []


@pytest.mark.parametrize("late", ["_start", "_keep", "_wait_told"])
def test_a_slow_keeper_finds_its_server(share, late):
    body = f"""
    prompt = sandbox.{late}
    def slow(*arguments):
        time.sleep(0.3)
        return prompt(*arguments)
    sandbox.{late} = slow
    sys.exit(confined(lambda place: 5))
    """
    assert said("namespace", share, body, status=5) == []


WAITS = """
from vmsim.cli.interrupts import Interrupted, interruptible
def serve(place):
    try:
        print(1, flush=True)
        time.sleep(60)
    except Interrupted as interrupted:
        os.close(os.open(place.share + "/tidied", os.O_CREAT | os.O_WRONLY))
        return interrupted.status
with interruptible():
    try:
        sys.exit(confined(serve))
    except Interrupted as interrupted:
        sys.exit(interrupted.status)
"""


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_signal_that_ends_the_keeper_is_passed_on(kind, share, number):
    needs(kind)
    with python(kind, share, WAITS) as process:
        assert process.stdout.readline() == "1\n"
        process.send_signal(number)
        assert process.wait(30) == 128 + number, process.stderr.read()
    assert (share / "tidied").exists()


@both
def test_a_server_ends_with_its_keeper_even_after_it_took_other_ids(kind, share):
    needs(kind)
    body = WAITS.replace("    try:\n        print(1", "    other_ids(place)\n    try:\n        print(1")
    body = """
from vmsim.host.fs import LinuxFs
def other_ids(place):
    fs = LinuxFs(place.proc)
    if fs.privileged:
        fs.become(1234, 1234, (), False)
        fs.become_self()
""" + body
    with python(kind, share, body) as process:
        assert process.stdout.readline() == "1\n"
        process.kill()
        # Its output ends when the server has.
        assert process.stdout.read() == ""
        told = process.stderr.read()
    assert (share / "tidied").exists(), told


def test_what_is_refused_is_told_and_changes_nothing(share, tmp_path):
    gone = tmp_path / "gone"
    body = """
    from vmsim.errors import HostError
    try:
        confined(lambda place: 0)
    except HostError as error:
        print((error.errno, error.hint != "", os.path.exists("/usr"), os.getcwd() != "/"))
    """
    assert said("namespace", gone, body) == [(errno.ENOENT, True, True, True)]


@pytest.mark.skipif(not ROOT, reason="needs root, to become somebody else")
def test_without_privilege_chroot_and_ranges_of_ids_are_refused(share):
    body = """
    from vmsim.errors import HostError
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    for kind, maps in (("chroot", ()), ("namespace", (IdMap(0, 100000, 65536),))):
        try:
            run(Sandbox(kind, "/usr", uid_maps=maps), lambda place: 0)
        except HostError as error:
            print((error.errno, error.hint))
    """
    (chroot, use), (maps, one) = said("namespace", share, body)
    assert chroot == errno.EPERM
    assert maps in (errno.EPERM, errno.EACCES)
    assert "--sandbox namespace" in use
    assert "one's own id" in one


@pytest.mark.parametrize(
    "text", ["", ":", ":0:1:2", "0:1:2:", ":0:1:", ":a:1:2:", ":0:1:0:", ":0:4294967295:2:", ":-1:0:1:"]
)
def test_maps_of_ids_that_are_none(text):
    with pytest.raises(UsageError) as refused:
        IdMap.parse(text)
    assert refused.value.hint


def test_maps_of_ids():
    assert IdMap.parse(":0:100000:65536:") == IdMap.parse("/0/100000/65536/") == (0, 100000, 65536)


def test_changes_of_capabilities():
    kept = capabilities.changed(capabilities.SERVING, "+SYS_ADMIN:-chown:+cap_kill:-net_raw")
    assert kept == capabilities.SERVING - {"chown"} | {"sys_admin", "kill"}
    assert capabilities.changed(kept, "") == kept
    for wrong in ("sys_admin", "+nothing", "+", "-:", "=chown"):
        with pytest.raises(UsageError) as refused:
            capabilities.changed(kept, wrong)
        assert "capabilities(7)" in refused.value.hint
