"""Pager buffers in a small memory: what each pool has, and how a pbuf tells whose it is."""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import pytest
from memory import MemoryTarget, kernel, lay

from plugin.kernel import pbuf
from plugin.kernel.buf import try_buf_at
from plugin.kernel.pbuf import Pool
from plugin.opening import open_core
from plugin.session import Kernel
from tests.damage import damaged
from tests.forge.scenarios.pbufs import exhaustion

DATA = 0xFFFFFFFF81000000
CODE = 0xFFFFFFFF80400000
BUFS = 0xFFFFFE0000100000
PAGES = 0xFFFFF80000200000
OBJECT, VNODE = 0xFFFFF80000300000, 0xFFFFF80000400000


class Machine:
    """A kernel of the first era, ``count`` pbufs, all of them in use."""

    def __init__(self, count: int = 2, osreldate: int = 1201000, **counters: int) -> None:
        k, target = kernel("12.1-RELEASE", osreldate)
        self.k: Kernel = k
        self.target: MemoryTarget = target
        self._next = DATA
        self.count = count
        self.stride = k.layouts.sizeof("buf")
        self.variable("nswbuf", count)
        self.variable("swbuf", BUFS, 8)
        self.bswlist = self.variable("bswlist", 0, 16)
        for name in ("allproc", "zombproc"):
            self.variable(name, 0, 8)
        for number in range(count):
            lay(k, target, "buf", self.pbuf(number))
        target.word(self.bswlist + 8, self.bswlist)
        for name, value in counters.items():
            self.variable(name, value)

    def variable(self, name: str, value: int, size: int = 4) -> int:
        self._next += 64
        data = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        self.target.symbol(name, self._next, data)
        return self._next

    def pbuf(self, number: int) -> int:
        at: int = BUFS + number * self.stride
        return at

    def free(self, *numbers: int) -> None:
        """Put these on the free list."""
        link = self.k.layouts.offsetof("buf", "b_freelist.tqe_next")
        at = self.bswlist
        for number in numbers:
            self.target.word(at, self.pbuf(number))
            lay(self.k, self.target, "buf", self.pbuf(number), b_freelist__tqe_prev=at)
            at = self.pbuf(number) + link
        self.target.word(at, 0)
        self.target.word(self.bswlist + 8, at)

    def pool(self, symbol: str) -> Optional[Pool]:
        return next((each for each in pbuf.pools(self.k) if each.symbol == symbol), None)


def findings(k: Kernel) -> List[Tuple[str, str]]:
    return [(each.what, each.detail) for each in k.warnings if each.what != "allproc"]


# Pools of the first era


@pytest.mark.parametrize(
    "symbol, limit",
    [
        ("nsw_rcount", 51),
        ("nsw_wcount_sync", 26),
        ("cluster_pbuf_freecnt", 50),
        ("vnode_pbuf_freecnt", 51),
        ("vnode_async_pbuf_freecnt", 50),
        ("ncl_pbuf_freecnt", 51),
        ("md_vnode_pbuf_freecnt", 10),
        ("ffsrawbufcnt", 95),
    ],
)
def test_a_counter_starts_with_its_share_of_all_pbufs(symbol: str, limit: int) -> None:
    machine = Machine(101, **{symbol: 3})
    pool = machine.pool(symbol)
    assert pool is not None
    assert (pool.limit, pool.in_use, pool.free) == (limit, limit - 3, 3)
    assert (pool.address, pool.kind) == (pool.wchan, "counter")
    assert not pool.exhausted


def test_raw_reads_of_few_pbufs_leave_eight() -> None:
    pool = Machine(100, ffsrawbufcnt=0).pool("ffsrawbufcnt")
    assert pool is not None
    assert (pool.limit, pool.exhausted) == (92, True)


@pytest.mark.parametrize("value, free, exhausted", [(2, 2, False), (1, 1, False), (0, 0, True)])
def test_a_pool_is_exhausted_when_none_is_left(value: int, free: int, exhausted: bool) -> None:
    pool = Machine(8, nsw_rcount=value).pool("nsw_rcount")
    assert pool is not None
    assert (pool.free, pool.exhausted) == (free, exhausted)


def test_a_counter_below_zero_has_no_limit_and_the_others_are_read_all_the_same() -> None:
    machine = Machine(8, nsw_rcount=-1, vnode_pbuf_freecnt=-4, cluster_pbuf_freecnt=4)
    first, second = machine.pool("nsw_rcount"), machine.pool("vnode_pbuf_freecnt")
    assert first is not None and second is not None
    assert (first.limit, first.free, first.in_use, first.exhausted) == (None, None, 0, False)
    assert second.in_use == 3
    assert machine.pool("cluster_pbuf_freecnt") is not None


def test_all_pbufs_are_those_of_the_list_and_those_in_use() -> None:
    machine = Machine(5)
    machine.free(1, 3)
    pool = machine.pool("bswlist")
    assert pool is not None
    assert (pool.name, pool.kind) == ("all pbufs", "list")
    assert (pool.limit, pool.in_use, pool.free, pool.wchan) == (5, 3, 2, 0)
    assert pbuf.addresses(machine.k) == [machine.pbuf(n) for n in (0, 2, 4)]
    assert not findings(machine.k)


def test_who_finds_the_list_empty_sleeps_on_bswneeded() -> None:
    machine = Machine(2)
    at = machine.variable("bswneeded", 1)
    pool = machine.pool("bswlist")
    assert pool is not None
    assert pool.wchan == at
    assert pbuf.pool_of_channel(machine.k, at) == pool
    assert pbuf.pool_of_channel(machine.k, at + 4) is None


def test_nobody_waits_on_what_the_kernel_has_not() -> None:
    machine = Machine(2)
    assert machine.pool("bswlist").waiters == ()  # type: ignore[union-attr]


def test_a_free_list_longer_than_there_are_pbufs_is_given_up() -> None:
    machine = Machine(3)
    machine.free(0, 1, 2)
    assert len(pbuf.pools(machine.k)) == 1
    assert not findings(machine.k)
    machine = Machine(3)
    machine.free(0, 1, 2)
    machine.target.word(machine.target.names["nswbuf"].address, 1, 4)
    assert pbuf.pools(machine.k)[0].free == 2
    assert findings(machine.k) == [("bswlist", "given up after 2 elements")]


def test_asynchronous_writes_to_swap_are_counted_besides() -> None:
    machine = Machine(8, nsw_wcount_async=1, nsw_wcount_async_max=4)
    pool = machine.pool("nsw_wcount_async")
    assert pool is not None
    assert (pool.limit, pool.in_use, pool.free, pool.kind) == (4, 3, 1, "counter")
    assert Machine(8, nsw_wcount_async=1).pool("nsw_wcount_async") is None
    assert Machine(8, nsw_wcount_async_max=4).pool("nsw_wcount_async") is None


def test_a_counter_that_cannot_be_read_is_a_finding_and_no_pool() -> None:
    machine = Machine(8, nsw_rcount=1)
    machine.target.symbol("vnode_pbuf_freecnt", 0xFFFFFFFFDEAD0000)
    assert [pool.symbol for pool in pbuf.pools(machine.k)] == ["bswlist", "nsw_rcount"]
    assert [what for what, _ in findings(machine.k)] == ["vnode_pbuf_freecnt"]


def test_a_counter_has_the_size_its_symbol_says_or_four_bytes() -> None:
    machine = Machine(8)
    at = machine.variable("nsw_rcount", 0x700000003, 8)
    machine.target.symbol("nsw_rcount", at)
    pool = machine.pool("nsw_rcount")
    assert pool is not None
    assert pool.free == 3
    machine = Machine(8)
    machine.variable("nsw_rcount", 0x700000003, 8)
    pool = machine.pool("nsw_rcount")
    assert pool is not None
    assert pool.free == 0x700000003


def test_without_pbufs_there_are_no_pools_and_none_in_use() -> None:
    k, _ = kernel("12.1-RELEASE", 1201000)
    assert pbuf.pools(k) == []
    machine = Machine(2)
    machine.target.word(machine.target.names["nswbuf"].address, -1, 4)
    assert pbuf.addresses(machine.k) == []
    machine = Machine(2)
    machine.target.word(machine.target.names["swbuf"].address, 0)
    assert pbuf.addresses(machine.k) == []
    machine = Machine(2)
    del machine.target.names["bswlist"]
    assert pbuf.addresses(machine.k) == []
    assert pbuf.pools(machine.k) == []
    machine = Machine(2)
    machine.target.symbol("swbuf", 0xFFFFFFFFDEAD0000)
    assert pbuf.addresses(machine.k) == []
    assert [what for what, _ in findings(machine.k)] == ["swbuf"]


# Whose a pbuf is


@pytest.mark.parametrize(
    "done, members, pool, zone",
    [
        ("swp_pager_async_iodone", {"b_iocmd": 1}, "swap reads", "swrbuf"),
        ("swp_pager_async_iodone", {"b_iocmd": 2}, "async swap writes", "swwbuf"),
        ("cluster_callback", {"b_iocmd": 1}, "clusters", "clpbuf"),
        ("vnode_pager_generic_getpages_done_async", {}, "vnode pager", "vnpbuf"),
        ("vnode_pager_putpages_done", {}, "vnode pager", "vnpbuf"),
        ("bdone", {"b_iocmd": 2, "b_npages": 1}, "sync swap writes", "swwbuf"),
        ("bdone", {"b_iocmd": 2, "b_npages": 1, "b_vp": VNODE}, "", ""),
        ("bdone", {"b_iocmd": 2, "b_npages": 1, "b_bufobj": VNODE}, "", ""),
        ("bdone", {"b_iocmd": 2}, "", ""),
        ("bdone", {"b_iocmd": 1, "b_npages": 1, "b_bufobj": VNODE}, "vnode pager", "vnpbuf"),
        ("bdone", {"b_iocmd": 1, "b_npages": 1}, "", ""),
        ("bdone", {"b_iocmd": 1, "b_bufobj": VNODE}, "", ""),
        ("", {"b_iocmd": 1, "b_npages": 1, "b_bufobj": VNODE}, "vnode pager", "vnpbuf"),
        ("somebody_done", {"b_iocmd": 2, "b_npages": 1}, "", ""),
    ],
)
def test_whose_a_pbuf_is_its_completion_and_its_command_tell(
    done: str, members: Any, pool: str, zone: str
) -> None:
    for zoned in (False, True):
        machine = Machine(1)
        if done:
            machine.target.symbol(done, CODE, bytes(16), kind="function")
            members = {**members, "b_iodone": CODE}
        at = lay(machine.k, machine.target, "buf", machine.pbuf(0), **members)
        if zoned:
            machine.variable("pbuf_zone", 0, 8)
        buf = try_buf_at(machine.k, at)
        assert buf is not None
        told, why = pbuf._pool(machine.k, buf)
        assert told == (zone if zoned else pool)
        assert why.startswith(f"b_iodone is {done or 'NULL'}")
        assert why.endswith(("is " + (done or "NULL"), "to no file", "a file's pages"))
        assert ("," in why) == (bool(pool) and done in ("bdone", ""))


def test_asynchronous_reads_of_files_have_a_counter_of_their_own_where_there_is_one() -> None:
    machine = Machine(1, vnode_async_pbuf_freecnt=4)
    machine.target.symbol("vnode_pager_generic_getpages_done_async", CODE, bytes(16))
    lay(machine.k, machine.target, "buf", machine.pbuf(0), b_iodone=CODE)
    (found,) = pbuf.bufs(machine.k)
    assert (found.pool, found.address) == ("async vnode pager", machine.pbuf(0))


def with_page(machine: Machine, number: int, **members: int) -> int:
    """A page in the pbuf of that number."""
    page = PAGES + number * 0x100
    lay(machine.k, machine.target, "vm_page", page, **members)
    at = machine.pbuf(number)
    lay(machine.k, machine.target, "buf", at, b_npages=1)
    machine.target.word(at + machine.k.layouts.resolve("buf", "b_pages").offset, page)
    return page


def test_what_the_pages_of_a_pbuf_belong_to_is_behind_it() -> None:
    machine = Machine(4)
    kind = machine.k.layouts.constant("OBJT_VNODE", 2)
    lay(machine.k, machine.target, "vm_object", OBJECT, type=kind, handle=VNODE)
    page = with_page(machine, 0, object=OBJECT)
    with_page(machine, 1, object=OBJECT + 0x800000)
    with_page(machine, 2)
    lay(machine.k, machine.target, "buf", machine.pbuf(2), b_vp=VNODE + 8)
    found = pbuf.bufs(machine.k)
    assert [(each.object, each.vnode) for each in found] == [
        (OBJECT, VNODE),
        (OBJECT + 0x800000, 0),
        (0, VNODE + 8),
        (0, 0),
    ]
    assert pbuf.holders(machine.k)[page] == [machine.pbuf(0)]


def test_the_bogus_page_and_one_that_cannot_be_read_belong_to_nothing() -> None:
    machine = Machine(2)
    lay(machine.k, machine.target, "vm_object", OBJECT)
    bogus = with_page(machine, 0, object=OBJECT)
    machine.variable("bogus_page", bogus, 8)
    with_page(machine, 1, object=OBJECT)
    at = machine.pbuf(1) + machine.k.layouts.resolve("buf", "b_pages").offset
    machine.target.word(at, PAGES + 0x800000)
    assert [each.object for each in pbuf.bufs(machine.k)] == [0, 0]


def test_a_pbuf_that_cannot_be_read_is_a_finding_and_the_others_are_there() -> None:
    machine = Machine(3)
    first = machine.pbuf(0)
    del machine.target.pieces[machine.pbuf(1)]
    assert [each.address for each in pbuf.bufs(machine.k)] == [first, machine.pbuf(2)]
    assert [what for what, _ in findings(machine.k)] == ["struct buf"]


# The second era, on a forged machine


@pytest.fixture(scope="module")
def zoned(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    vmcore, file = exhaustion().write(tmp_path_factory.mktemp("zones"))
    return open_core(str(vmcore), str(file))


def test_the_zone_of_all_pbufs_comes_first_and_those_on_its_keg_follow(zoned: Kernel) -> None:
    k = damaged(zoned)
    first, *others = pbuf.pbuf_zones(k)
    assert first.address == k.global_value("pbuf_zone")
    assert others and {zone.keg for zone in others} == {first.keg}
    assert first.address not in {zone.address for zone in others}
    pools = pbuf.pools(k)
    assert pools[0].symbol == "pbuf_zone"
    assert pbuf.has_zones(k)
    waiting = next(zone for zone in others if zone.waiters)
    assert waiting.channels[0] in {pool.wchan for pool in pools}
    full = next(pool for pool in pools if pool.symbol == "swwbuf_zone")
    assert (full.kind, full.free, full.exhausted) == ("zone", 0, True)
    assert full.in_use == full.limit
    assert len(full.waiters) == 3
    assert len(pbuf.addresses(k)) == full.limit
    assert pbuf.pool_of_channel(k, full.wchan) == full


def test_a_zone_whose_variable_is_null_has_no_symbol_and_the_others_have(zoned: Kernel) -> None:
    named = {pool.symbol for pool in pbuf.pools(damaged(zoned))}
    k = damaged(zoned, words={zoned.address_of("swwbuf_zone"): bytes(8)})
    assert {pool.symbol for pool in pbuf.pools(k)} == (named - {"swwbuf_zone"}) | {""}


def test_without_the_zone_of_all_pbufs_there_is_none(zoned: Kernel) -> None:
    k = damaged(zoned, words={zoned.address_of("pbuf_zone"): bytes(8)})
    assert pbuf.pbuf_zones(k) == []
    assert pbuf.addresses(k) == []
    k = damaged(zoned, missing=[zoned.address_of("pbuf_zone")])
    assert pbuf.pbuf_zones(k) == []
    assert "pbuf_zone" in {finding.what for finding in k.warnings}
    assert pbuf.addresses(k) == []


def test_the_first_era_has_no_zones() -> None:
    assert not pbuf.has_zones(Machine(1).k)
    assert pbuf.pbuf_zones(Machine(1).k) == []
