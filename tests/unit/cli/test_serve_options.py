"""The options of ``vmsim serve``: what they become, and which are refused."""

from operator import attrgetter

import click
import pytest

from devices.virtio_fs import DEVICE
from vmsim.cli.migrate import migrate
from vmsim.cli.serve_options import (
    OPTIONS,
    device_options,
    refuse_unsupported,
    sandbox_of,
    serve_options,
)
from vmsim.errors import UsageError
from vmsim.host import capabilities
from vmsim.host.sandbox import IdMap
from vmsim.machine.config import MachineConfig
from vmsim.machine.remote import command_options

MACHINES_OWN = {"migration_save", "migration_load"}
"""What a machine calls like an option of its back-end, and means otherwise."""


def values(*words):
    """The values of a command line."""
    found = {}

    @click.command()
    @serve_options
    def command(**options):
        found.update(options)

    command.main([*words], standalone_mode=False)
    return found


def file_options(*words):
    return DEVICE.check_options(device_options(values(*words)))[0]


def state_options(*words):
    return DEVICE.check_options(device_options(values(*words)))[1]


def test_defaults_are_virtiofsds():
    options = file_options()
    assert (options.cache, options.writeback) == ("auto", False)
    assert (options.xattr, options.posix_acl) == (False, False)
    assert (options.readdirplus, options.announce_submounts, options.killpriv_v2) == (True, True, False)
    assert (options.direct_io, options.allow_mmap, options.readonly) == (False, False, False)
    assert (options.preserve_noatime, options.security_label, options.xattrmap) == (False, False, "")
    assert options.inode_file_handles == "prefer"  # since 1.13.3
    state = state_options()
    assert (state.mode, state.on_error, state.verify_handles, state.confirm_paths) == (
        "find-paths", "abort", False, False
    )  # fmt: skip
    assert (values()["rlimit_nofile"], values()["sandbox"]) == (None, None)


@pytest.mark.parametrize(("words", "name", "value"), [
    ("--cache metadata", "cache", "metadata"), ("--writeback", "writeback", True), ("--xattr", "xattr", True),
    ("--allow-mmap", "allow_mmap", True), ("--allow-direct-io", "direct_io", True),
    ("--posix-acl", "posix_acl", True), ("--security-label", "security_label", True),
    ("--xattrmap :map::user.v.:", "xattrmap", ":map::user.v.:"), ("--readonly", "readonly", True),
    ("--no-announce-submounts", "announce_submounts", False), ("--no-readdirplus", "readdirplus", False),
    ("--killpriv-v2", "killpriv_v2", True), ("--killpriv-v2 --no-killpriv-v2", "killpriv_v2", False),
    ("--no-locks", "locks", False), ("--preserve-noatime", "preserve_noatime", True),
    ("--translate-uid map:0:9:2 --translate-uid map:5:6:1", "translate_uid", ("map:0:9:2", "map:5:6:1")),
    ("--translate-gid host:0:1000:2", "translate_gid", ("host:0:1000:2",)),
    ("--inode-file-handles mandatory", "inode_file_handles", "mandatory"),
    ("--inode-file-handles=fallback", "inode_file_handles", "prefer"),
])  # fmt: skip
def test_what_the_file_server_gets(words, name, value):
    assert getattr(file_options(*words.split()), name) == value


@pytest.mark.parametrize(("words", "name", "value"), [
    ("--migration-mode file-handles", "mode", "file-handles"),
    ("--migration-on-error guest-error", "on_error", "guest-error"),
    ("--migration-verify-handles", "verify_handles", True),
    ("--migration-confirm-paths", "confirm_paths", True),
])  # fmt: skip
def test_what_the_migration_gets(words, name, value):
    assert getattr(state_options(*words.split()), name) == value


@pytest.mark.parametrize("words", ["--posix-acl", "--security-label", "--xattrmap :map::user.v.:"])
def test_what_needs_extended_attributes_has_them(words):
    assert file_options(*words.split()).xattr


@pytest.mark.parametrize(("words", "hint"), [
    ("-o source=/srv,xattr,cache=none -o no_posix_lock,norace",
     "use --shared-dir /srv --xattr --cache none --no-locks --norace"),
    ("--socket /s", "use --socket-path"), ("--syslog", "messages go to standard error"),
    ("--seccomp kill", "use --seccomp none"),
])  # fmt: skip
def test_what_is_refused_says_what_to_do(words, hint):
    with pytest.raises(UsageError, match="is not supported") as refused:
        refuse_unsupported(values(*words.split()))
    assert refused.value.hint.startswith(hint)
    with pytest.raises(UsageError):
        device_options(values(*words.split()))


def test_what_is_accepted_for_virtiofsds_sake():
    refuse_unsupported(values("--seccomp", "none", "--thread-pool-size", "4", "-d", "-f"))


@pytest.mark.parametrize("words", [
    "--cache sometimes", "--inode-file-handles maybe", "--sandbox jail", "--migration-mode auto",
    "--request-queues 0", "--log-level loud", "--ring-policy none", "--dialect old", "--no-such-option",
    "--fd -1", "--rlimit-nofile many",
])  # fmt: skip
def test_values_that_do_not_exist(words):
    with pytest.raises(click.UsageError):
        values(*words.split())


def test_the_sandbox():
    usual = capabilities.SERVING
    assert sandbox_of(values("--shared-dir", "/srv")).kind == "namespace"
    assert sandbox_of(values()).keep == usual | {"dac_read_search"}
    assert sandbox_of(values("--inode-file-handles", "never")).keep == usual
    words = ["--inode-file-handles", "never", "--migration-mode", "file-handles"]
    assert sandbox_of(values(*words)).keep == usual | {"dac_read_search"}
    assert sandbox_of(values("--sandbox", "chroot")).keep == usual
    changed = sandbox_of(values("--sandbox", "chroot", "--modcaps", "+dac_read_search:-chown")).keep
    assert changed == usual - {"chown"} | {"dac_read_search"}
    mapped = sandbox_of(values("--uid-map", ":0:1000:1:", "--uid-map", ":1:5000:9:", "--gid-map", ":0:7:1:"))
    assert mapped.uid_maps == (IdMap(0, 1000, 1), IdMap(1, 5000, 9))
    assert mapped.gid_maps == (IdMap(0, 7, 1),)
    with pytest.raises(UsageError) as refused:
        sandbox_of(values("--sandbox", "none", "--uid-map", ":0:1000:1:"))
    assert refused.value.hint == "use --sandbox namespace"


def samples(option):
    """Values of an option, its defaults among them."""
    if option.flag:
        return [False, True]
    if option.choices:
        return option.choices
    return [(), ("map:0:9:2",), ("map:0:9:2", "map:5:6:1")] if option.many else ["", ":map::user.v.:"]


@pytest.mark.parametrize("option", DEVICE.options, ids=attrgetter("name"))
def test_a_process_of_its_own_is_told_what_a_program_asks_for(option):
    for value in samples(option):
        memory = [(0, 1 << 20)]
        words = command_options(MachineConfig(memory=memory, options={option.name: value}))
        try:
            asked = DEVICE.check_options({option.name: value})
        except UsageError:
            continue
        assert DEVICE.check_options(device_options(values(*words))) == asked


def test_commands_that_start_machines_have_what_the_device_says():
    offered = {parameter.name for parameter in migrate.params} - MACHINES_OWN
    assert offered & {option.name for option in DEVICE.options} == {
        option.name for option in DEVICE.options if option.machines
    }


def test_every_device_option_of_a_row_exists():
    known = DEVICE.file_options | DEVICE.state_options
    assert {row.to for row in OPTIONS if row.to} <= known
    spellings = [spelling for row in OPTIONS for spelling in row.spellings]
    assert len(spellings) == len(set(spellings))
