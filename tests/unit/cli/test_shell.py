"""The shell: every command, quoting and redirection, descriptors across migrations, safe output."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios

import pytest

from tests.support.waiting import state_of, until
from vmsim.cli.shell.command import COMMANDS, ShellError
from vmsim.cli.shell.words import Statement, Word, expanded, protected, statements


def texts(line):
    return [[word.text for word in each.words] for each in statements(line)]


@pytest.mark.parametrize(("line", "words"), [
    ("ls -l  a", [["ls", "-l", "a"]]),
    ("echo 'a  b' \"c 'd' \\\" $x\" e\\ f", [["echo", "a  b", "c 'd' \" $x", "e f"]]),
    ("a;b ; c", [["a"], ["b"], ["c"]]),
    ("", []), ("   # only this", []), ("a # b; c", [["a"]]), ("a#b", [["a#b"]]),
    ("echo ';' \\; \">\"", [["echo", ";", ";", ">"]]),
    ("echo ''", [["echo", ""]]), ("x'y'z", [["xyz"]]),
])  # fmt: skip
def test_words(line, words):
    assert texts(line) == words


def test_redirections():
    assert statements("echo a >b") == [Statement([Word("echo"), Word("a")], Word("b"))]
    assert statements("echo a>> 'b c'") == [Statement([Word("echo"), Word("a")], Word("b c", True), True)]
    for line in ("echo a >", "> a", "a > b > c", "echo >; b"):
        with pytest.raises(ShellError):
            statements(line)


@pytest.mark.parametrize("line", ["echo 'a", 'echo "a', "echo a\\", 'x "\\"'])
def test_quotations_need_an_end(line):
    with pytest.raises(ShellError, match="quotation"):
        statements(line)


def test_patterns():
    tree = {".": ["a.txt", "b.txt", ".hidden", "d"], "d/": ["c.txt"], "/": ["d", "e"], "/d/": ["c.txt"]}

    def listdir(path):
        if path not in tree:
            raise NotADirectoryError(path)
        return tree[path]

    def matches(text):
        return expanded(Word(text), listdir)

    assert matches("*.txt") == ["a.txt", "b.txt"]
    assert matches(".h*") == [".hidden"]
    assert matches("*/*.txt") == ["d/c.txt"]
    assert matches("/?/c*") == ["/d/c.txt"]
    assert matches("[ab].txt") == ["a.txt", "b.txt"]
    assert matches("*.none") == ["*.none"]
    assert expanded(Word("*.txt", quoted=True), listdir) == ["*.txt"]


def test_protected_names_are_read_as_typed():
    for name in ("a b", "it's", 'q"q', "a;b>c", "#x", "*?[", "back\\slash"):
        assert texts("ls " + protected(name)) == [["ls", name]]


@pytest.fixture
def shell(vmsim, share):
    """Run commands in a guest on the share; standard output, all must have succeeded."""

    def call(*lines, status=0, options=()):
        ended = vmsim("shell", share, *options, "-c", "\n".join(lines))
        assert ended.status == status, ended.err
        call.err = ended.err
        return ended.out

    return call


def test_looking_around(shell, share):
    assert shell("ls") == "docs\nhello.txt\nlink\n"
    assert shell("ls docs hello.txt") == "docs:\none\nhello.txt\n"
    assert "link -> hello.txt" in shell("ls -l")
    assert shell("ls -d docs; pwd; cd docs; pwd; ls") == "docs\n/\n/docs\none\n"
    assert shell("cat hello.txt link") == "hello\nhello\n"
    assert shell("cat docs/one") == "1" * 100_000 + "\n"
    assert shell("head -n 1 hello.txt") == "hello\n"
    assert shell("readlink link") == "hello.txt\n"
    assert shell("find docs") == "docs\ndocs/one\n"
    assert shell("tree").splitlines()[-1] == "1 directories, 3 files"
    assert "100000 bytes" in shell("stat docs/one")
    assert "available" in shell("df")
    (share / ".hidden").touch()
    assert ".hidden" not in shell("ls")
    assert ".hidden" in shell("ls -a")


def test_changing_things(shell, share):
    shell(
        "mkdir -p a/b; echo one two > a/f; echo three >> a/f; cp a/f a/g; mv a/g a/b; ln a/f a/h",
        "ln -s f a/s",
        "cp -r a c; touch new; chmod 600 new; truncate 3 a/f; rm c/h; rmdir a/b/nothing",
        status=1,
    )
    assert "rmdir: " in shell.err
    assert (share / "a" / "f").read_text() == "one"
    assert (share / "a" / "h").samefile(share / "a" / "f")
    assert (share / "c" / "b" / "g").read_text() == "one two\nthree\n"
    assert os.readlink(share / "c" / "s") == "f"
    assert not (share / "c" / "h").exists()
    assert (share / "new").stat().st_mode & 0o777 == 0o600
    shell("rm -r a c; rm *.txt; rm -f nothing; sync")
    assert sorted(os.listdir(share)) == ["docs", "link", "new"]


def test_output_goes_to_files_as_it_is(shell, share):
    (share / "binary").write_bytes(bytes(range(256)) * 5000)
    shell("cat binary > copy; cat copy >> copy2; ls > list; echo -n x > bare; help > help.txt")
    assert (share / "copy2").read_bytes() == (share / "binary").read_bytes()
    assert (share / "bare").read_bytes() == b"x"
    assert "hello.txt\n" in (share / "list").read_text()


def test_copies_that_make_no_sense(shell, share):
    for line in ("cp hello.txt hello.txt", "cp hello.txt link", "cp docs x", "cp a b nodir", "mv . docs"):
        shell(line, status=1)
    assert (share / "hello.txt").read_text() == "hello\n"


def test_descriptors_survive_migrations(shell, share):
    out = shell(
        "open hello.txt r+", "read 0 2", "lock 0", "open docs/one", "open new x+", "write 2 some text",
        "rm new",
        "migrate 2", "fds", "read 0", "seek 2 0", "read 2", "seek 2 -4 end", "write -n 2 body", "seek 2 5",
        "read 2", "unlock 0", "close 0 1 2", "fds",
    ).splitlines()
    assert out[:4] == ["0", "he", "1", "2"]
    assert sum(line.startswith("migrated in") for line in out) == 2
    fds = [line for line in out if "offset" in line]
    assert [line.split()[1] for line in fds] == ["hello.txt", "docs/one", "new"]
    assert "offset 2" in fds[0]
    assert "locked" in fds[0]
    assert out[-6:] == ["llo", "0", "some text", "6", "5", "tbody"]


def test_a_saved_machine_goes_on_in_another_shell(vmsim, share, tmp_path):
    assert vmsim("shell", share, "-c", f"open hello.txt r+; read 0 1; cd docs; save {tmp_path}/s").status == 0
    ended = vmsim("shell", share, "--restore", tmp_path / "s", "-c", "pwd; fds; read 0 3")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == "/docs"
    assert "hello.txt  offset 1" in ended.out
    assert ended.out.splitlines()[-1] == "ell"
    assert vmsim("shell", "--restore", tmp_path / "s").status == 2


def test_options_of_a_restored_machine_are_used_or_refused(vmsim, share, tmp_path):
    assert vmsim("shell", share, "-c", f"open hello.txt; save {tmp_path}/s").status == 0
    again = ("shell", share, "--restore", tmp_path / "s")
    refused = vmsim(*again, "--ring", "split", "-c", "pwd")
    assert refused.status == 2
    assert "--ring cannot be changed" in refused.err
    blocked = vmsim(*again, "--migration", "none", "-c", "migrate")
    assert "blocked" in blocked.err
    (share / "hello.txt").unlink()
    lost = vmsim(*again, "-c", "pwd")
    assert lost.status == 1
    assert "with the names it had at the end" in lost.err
    assert vmsim(*again, "--migration-on-error", "guest-error", "-c", "pwd").status == 0


def test_saving_a_machine_on_a_temporary_directory_says_so(vmsim, share, tmp_path):
    assert "goes when you leave" in vmsim("shell", "-c", f"save {tmp_path}/s").out
    assert "goes when you leave" not in vmsim("shell", share, "-c", f"save {tmp_path}/s").out


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_rings_show_where_both_sides_stand(shell, ring):
    out = shell("ls > /x; rm /x; rings; migrate; rings", options=("--ring", ring, "--queues", "2"))
    assert "0 hiprio" in out
    assert "2 requests.1" in out
    assert "next avail" in out
    assert ("wrap" in out) == (ring == "packed")
    assert ("avail.idx" in out) == (ring == "split")


def test_inodes_handles_and_locks(shell):
    out = shell("open hello.txt r+; lock 0; inodes; check")
    assert "inode 1: " in out
    assert "handle 0: inode 2" in out
    assert "flock of handle 0: exclusive" in out


def test_check_tells_what_would_not_survive(shell):
    assert shell("check") == "everything would survive a migration\n"
    assert "unlinked" in shell("open u x; rm u; check")


def test_names_are_safe_on_a_terminal(shell, share):
    for name in (b"\x1b[31mred", b"a\nb", b"\xff\xfe"):
        with open(os.path.join(os.fsencode(share), name), "w"):
            pass
    for command in ("ls", "ls -l", "find", "tree", "ls *"):
        out = shell(command)
        assert "\x1b" not in out
        assert r"\x1b[31mred" in out
        assert r"a\nb" in out
        assert r"\xff\xfe" in out
    shell("cat nothing\\\x1b[31m", status=1)
    assert "\x1b" not in shell.err


ODD = (
    "ls -z", "cat", "read x", "read 99", "chmod 8 hello.txt", "open hello.txt q", "seek 0 0 middle",
    "exit x", "head -n 1", "nonsense", "help nonsense", "cp a", "xattr", "close", "cd hello.txt", "cat docs",
    "ls \0", "truncate x hello.txt", "readlink hello.txt", "migrate x",
    "save /nowhere/x", "pwd > /no/such/dir", "'open",
)  # fmt: skip


@pytest.mark.parametrize("line", ODD)
def test_what_goes_wrong_is_one_line_and_the_shell_goes_on(shell, line):
    assert shell(line, "echo still here", status=1).endswith("still here\n")
    assert len(shell.err.splitlines()) == 1
    assert "Traceback" not in shell.err


def test_help(shell):
    out = shell("help")
    for name, command in COMMANDS.items():
        assert command.usage in out
        assert command.help in shell(f"help {name}")


def test_exit_status(shell):
    shell("exit 3", "echo not reached > x", status=3)
    shell("exit", status=0)
    shell("nonsense", "exit", status=1)


def test_read_only(shell, share):
    before = sorted(os.listdir(share))
    shell("echo x > y", "rm hello.txt", status=1, options=("--read-only",))
    assert "Read-only" in shell.err
    assert sorted(os.listdir(share)) == before


def test_blocked_migration_leaves_the_guest_running(shell):
    out = shell("open hello.txt", "migrate", "read 0", status=1, options=("--migration", "none"))
    assert out == "0\nhello\n"
    assert "migrate: " in shell.err


def test_xattrs_where_the_host_has_them(shell, share):
    try:
        os.setxattr(share / "hello.txt", "user.a", b"1")
    except OSError:
        pytest.skip("no extended attributes here")
    assert shell("xattr hello.txt; xattr hello.txt user.a; xattr hello.txt user.b 2") == "user.a\n1\n"
    assert os.getxattr(share / "hello.txt", "user.b") == b"2"


def test_a_script_on_standard_input(share):
    command = [sys.executable, "-m", "vmsim.cli", "shell", str(share)]
    done = subprocess.run(command, input=b"ls\nmigrate\ncat nix\n\xff\n", capture_output=True, timeout=60)
    assert done.returncode == 1
    assert done.stdout.startswith(b"docs\nhello.txt\nlink\nmigrated in")
    assert done.stderr.splitlines() == [
        b"cat: No such file or directory: nix", rb"\xff: no such command; help lists them"
    ]  # fmt: skip


def read_until(fd, mark):
    data = b""
    while mark not in data:
        piece = os.read(fd, 4096)
        assert piece, data
        data += piece
    return data


def test_typing(share):
    """At a terminal: prompt, completion with the tab key, Ctrl-C for the line, Ctrl-D for the end."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "vmsim.cli", "shell", str(share)]
    environment = {**os.environ, "TERM": "dumb"}
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(follower)
    try:
        read_until(leader, b"guest:/$ ")
        os.write(leader, b"cat hel\t\n")
        read_until(leader, b"hello\r\nguest:/$ ")
        os.write(leader, b"abandoned line")
        read_until(leader, b"abandoned line")
        # A signal between what the terminal shows and the wait for a key is seen at the next key only.
        until(lambda: state_of(process.pid) == "S", "the shell to wait for a key")
        os.write(leader, b"\x03")
        read_until(leader, b"guest:/$ ")
        os.write(leader, b"cd docs\n")
        read_until(leader, b"guest:/docs$ ")
        os.write(leader, b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(leader)
