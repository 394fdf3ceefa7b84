# Part of _native.pyx: what a gateway keeps of its clients' requests: which numbers were taken and what was answered, and
# whose turn it is. Belongs to one event loop; knows no clock, no connection and no key manager.

from bisect import bisect_right
from collections import OrderedDict
from heapq import heappop, heappush


@cython.final
cdef class SeenIds:
    """The numbers of a nonce that were taken. Connections of one process race, so a number may come behind a higher
    one; those that have not come yet are kept as ranges."""

    cdef readonly uint64_t newest
    """The highest number that was taken."""
    cdef Py_ssize_t _most
    cdef list _lows
    cdef list _highs
    cdef list _since  # when a higher number was taken for the first time: it grows with the range

    def __init__(self, Py_ssize_t most=4096):
        """`most`: ranges."""
        self._most = most
        self._lows, self._highs, self._since = [], [], []

    def __contains__(self, uint64_t number):
        return number <= self.newest and self._gap(number) < 0

    @property
    def gaps(self):
        """How many ranges are kept."""
        return PyList_GET_SIZE(self._lows)

    def has_room(self, uint64_t number, double before):
        """Whether a number can be taken. Where there are too many ranges, those from before this time count as
        taken."""
        cdef Py_ssize_t at
        if number == self.newest + 1 or PyList_GET_SIZE(self._lows) < self._most:
            return True
        self._drop(bisect_right(self._since, before))
        if PyList_GET_SIZE(self._lows) < self._most:
            return True
        at = self._gap(number)
        return at >= 0 and number in (self._lows[at], self._highs[at])

    def take(self, uint64_t number, double now):
        """A request with this number, which was not taken, is begun. Returns whether the ranges are others now."""
        return self._take(number, now)

    cdef bint _take(self, uint64_t number, double now) except -1:
        cdef uint64_t before = self.newest
        cdef Py_ssize_t at
        if number > before:
            self.newest = number
            if number == before + 1:
                return False
            self._lows.append(before + 1)
            self._highs.append(number - 1)
            self._since.append(now)
            return True
        at = self._gap(number)
        if at < 0:
            return False
        low, high = self._lows[at], self._highs[at]
        if low == high:
            del self._lows[at], self._highs[at], self._since[at]
        elif number == low:
            self._lows[at] = low + 1
        elif number == high:
            self._highs[at] = high - 1
        else:
            self._highs[at] = number - 1
            self._lows.insert(at + 1, number + 1)
            self._highs.insert(at + 1, high)
            self._since.insert(at + 1, self._since[at])
        return True

    def take_below(self, number):
        """All numbers below this one, 1 to 2^64, count as taken."""
        cdef uint64_t last = number - 1
        self.newest = max(self.newest, last)
        if PyList_GET_SIZE(self._lows):
            self._drop(bisect_right(self._highs, last))
            if self._lows and self._lows[0] < number:
                self._lows[0] = number

    cdef Py_ssize_t _gap(self, uint64_t number) except -2:
        """The range that a number is in; -1: none."""
        cdef Py_ssize_t at
        if PyList_GET_SIZE(self._lows) == 0:
            return -1
        at = bisect_right(self._lows, number) - 1
        return at if at >= 0 and number <= self._highs[at] else -1

    cdef int _drop(self, Py_ssize_t count) except -1:
        del self._lows[:count], self._highs[:count], self._since[:count]
        return 0


@cython.final
cdef class MemoryBudget:
    """The memory of one client's answers, in bytes."""

    cdef public Py_ssize_t most
    cdef public Py_ssize_t used

    def __init__(self, Py_ssize_t most):
        self.most = most


cdef class ReplayTable:
    """What one process of a client asked for, on all its connections. What a request asks for are its `contents`, which
    are equal for equal requests only; those of VERIFY, which may be repeated, begin with `repeats`."""

    cdef readonly dict open
    """By number: the contents, and the request."""
    cdef object _answered  # OrderedDict: contents, answer, when, bytes
    cdef SeenIds _taken  # what is in it, and not known, was answered and is forgotten, or is asked for no more
    cdef MemoryBudget _room
    cdef object _floor  # the lowest number that may be asked for again, by the client's word
    cdef object _repeats
    cdef Py_ssize_t _gaps  # those of `_taken` that `_room` counts
    cdef Py_ssize_t _entry
    cdef Py_ssize_t _gap

    def __init__(self, MemoryBudget room not None, repeats, Py_ssize_t entry_bytes, Py_ssize_t gap_bytes):
        """`entry_bytes`: of an answer, beside itself and what was asked; `gap_bytes`: of a range of numbers."""
        self._room, self._repeats, self._entry, self._gap = room, repeats, entry_bytes, gap_bytes
        self._floor = 1
        self.open, self._answered, self._taken = {}, OrderedDict(), SeenIds.__new__(SeenIds)
        self._taken.__init__()

    @property
    def remembered(self):
        """Answers that may be asked for again."""
        return len(self._answered)

    @property
    def last(self):
        """When the newest answer was made, and the highest number that was taken. There are answers."""
        return next(reversed(self._answered.values()))[2], self._taken.newest

    def find(self, number, tuple contents not None):
        """The open request of this number, or its answer; None: it is new. Raises BadArgument for other contents than
        before, and for a number whose answer is forgotten."""
        cdef PyObject *known = PyDict_GetItemWithError(self.open, number)
        if known != NULL:
            return _same(number, contents, <tuple><object>known)
        answered = self._answered.get(number)
        if answered is not None:
            return _same(number, contents, <tuple>answered)
        if number in self._taken and contents[0] != self._repeats:
            error = BadArgument(f"what request {number} was answered is forgotten")
            error.maybe_signed = True
            raise error
        return None

    cpdef str lacks(self, uint64_t number, double before):
        """What a new request lacks that must be remembered, "memory" or "gaps"; or "". Nothing is forgotten for it, but
        ranges from before this time."""
        if self._room.used >= self._room.most:
            return "memory"
        if number == self._taken.newest + 1:
            return ""
        found = self._taken.has_room(number, before)
        self._count_gaps()
        return "" if found else "gaps"

    cdef bint _is_new(self, uint64_t number, double before) except -1:
        """Whether a number was not taken, and there is room for it."""
        if number <= self._taken.newest and self._taken._gap(number) < 0:
            return False
        return self.lacks(number, before) == ""

    cpdef begin(self, number, tuple contents, request, double now):
        """A new request is open from now on. There is room for it."""
        self.open[number] = contents, request
        if self._taken._take(number, now):
            self._count_gaps()

    cpdef close(self, number, bytes answer, double now):
        """An open request is answered. None: the answer need not be remembered, nothing was done."""
        cdef tuple contents = (<tuple>self.open.pop(number))[0]
        cdef Py_ssize_t size
        if answer is not None and number >= self._floor:
            size = self._entry + PyBytes_GET_SIZE(answer) + len(contents[3])
            self._answered[number] = contents, answer, now, size
            self._room.used += size

    def acknowledge(self, number):
        """Nothing below this number is asked for again."""
        self._floor = max(self._floor, number)
        if number:
            self._taken.take_below(number)
        self._count_gaps()
        # The order is that of the answers. One that stands behind a later number goes with that.
        while self._answered and next(iter(self._answered)) < number:
            self._forget_first()

    def expire(self, double before):
        """Forget the answers from before this time."""
        while self._answered and next(iter(self._answered.values()))[2] < before:
            self._forget_first()

    cdef int _count_gaps(self) except -1:
        cdef Py_ssize_t gaps = PyList_GET_SIZE(self._taken._lows)
        self._room.used += self._gap * (gaps - self._gaps)
        self._gaps = gaps
        return 0

    cdef int _forget_first(self) except -1:
        _, known = self._answered.popitem(last=False)
        self._room.used -= <Py_ssize_t>known[3]
        return 0


cdef object _same(object number, tuple asked, tuple known):
    if asked != known[0]:
        raise BadArgument(f"request {number} was another one before: each number means one request")
    return known[1]


cdef class Flow:
    """What one client asks for. `weight`: its share in relation to the others'. The rest is for its FairQueue."""

    cdef readonly Py_ssize_t weight
    cdef double _finish  # when what it has had so far would be done at its share, in virtual time
    cdef readonly object waiting
    """Work that waits, in its order, and what it costs; of work that has begun, what is left."""
    cdef bint _listed
    cdef bint _lately  # whether it is one of those that have asked lately
    cdef readonly Py_ssize_t under_way
    cdef Py_ssize_t _peak  # the most that was under way lately
    cdef Py_ssize_t _newer  # and in the newer half of that time
    cdef public Py_ssize_t open
    """As of a CallerAccount, which a flow is, too, in a gateway; `most`, `rate` and `held` as well."""
    cdef public Py_ssize_t most
    cdef public object rate
    cdef public object held

    def __init__(self, Py_ssize_t weight=1):
        self.weight, self.waiting = weight, OrderedDict()

    @classmethod
    def __class_getitem__(cls, _of):
        return cls


# Times as much as a flow that is alone may have under way: so much is begun in half of what counts as lately.
cdef Py_ssize_t _LATELY = 4
# Of what may be under way, a large piece of work takes such a part at a time: the others keep the keys busy.
cdef Py_ssize_t _PIECES = 4


@cython.final
cdef class FairQueue:
    """Lets work begin while less than `most` is under way, and else in its turn: start-time fair queueing. While
    several flows wait, each gets of what there is by its weight, whatever it asks for; one that asked for nothing has
    saved nothing. Work that costs much begins in pieces, between which others have their turns.

    What is under way is not overtaken, and one that has little under way waits behind all of it. So beyond `busy` a
    flow has no more under way than the others had on an average lately, by its weight, and one piece."""

    cdef Py_ssize_t _most
    cdef Py_ssize_t _busy
    cdef Py_ssize_t _alone
    cdef public Py_ssize_t under_way
    cdef list _lately  # flows that have asked, or have something under way
    cdef Py_ssize_t _weights  # theirs
    cdef Py_ssize_t _held  # what each has had under way at most
    cdef Py_ssize_t _left  # until the older half of it is forgotten, so much begins
    cdef double _now
    # The flows in which work waits: when the first piece begins, in virtual time; then in the order of entry.
    cdef list _order
    cdef uint64_t _entries

    def __init__(self, Py_ssize_t most, Py_ssize_t alone=0, Py_ssize_t busy=-1):
        """`alone`: as `most`, while one flow is the only one that has asked for anything lately; 0: the same. `busy`:
        what keeps the keys busy; -1: `most`."""
        self._most, self._alone, self._order, self._lately = most, max(alone, most), [], []
        self._busy = most if busy < 0 else busy
        self._left = _LATELY * self._alone

    @classmethod
    def __class_getitem__(cls, _of):
        return cls

    @property
    def waiting(self):
        """Works of which something waits."""
        return sum([len((<Flow>flow).waiting) for _, _, flow in self._order])

    @property
    def most(self):
        """Work that may be under way now."""
        return self._now_most()

    cdef Py_ssize_t _now_most(self) noexcept:
        return self._most if PyList_GET_SIZE(self._lately) > 1 else self._alone

    cdef Py_ssize_t _share(self, Flow flow) noexcept:
        """What others have had under way on an average, for a flow of this weight."""
        cdef Py_ssize_t weights = self._weights - flow.weight
        return self._alone if weights == 0 else (self._held - flow._peak) * flow.weight // weights

    cdef Py_ssize_t _room(self, Flow flow) noexcept:
        """How much more of a flow may be under way, by its share."""
        return max(self._busy - self.under_way, self._share(flow) + 1 - flow.under_way)

    cpdef bint begins(self, Flow flow) except -1:
        """Ask for a turn for a work of cost 1 that has it now: returns whether it has. Else `take` is to be called."""
        self._asks(flow)
        if PyList_GET_SIZE(self._order) or self.under_way >= self._now_most() or self._room(flow) < 1:
            return False
        self._begin(flow, max(self._now, flow._finish), 1)
        return True

    def take(self, Flow flow not None, work, Py_ssize_t cost=1):
        """Ask for turns for a work. Returns what begins now, and how much of it; what does not waits until `free` or
        `withdraw` returns it."""
        if cost == 1 and self.begins(flow):
            return [(work, 1)]
        self._asks(flow)
        flow.waiting[work] = cost
        self._list(flow)
        return self._next()

    cpdef list free(self, Flow flow, Py_ssize_t cost=1):
        """So much of a flow is done: return what begins now, as `take`."""
        self.under_way -= cost
        flow.under_way -= cost
        return self._next() if PyList_GET_SIZE(self._order) else []

    def withdraw(self, Flow flow not None, work):
        """What waits of a work begins no more: return what begins now, because it stood in the way."""
        del flow.waiting[work]
        return self._next()

    cdef int _asks(self, Flow flow) except -1:
        if not flow._lately:
            flow._lately = True
            self._lately.append(flow)
            self._weights += flow.weight
        return 0

    cdef int _begin(self, Flow flow, double start, Py_ssize_t cost) except -1:
        self._now, flow._finish = start, start + <double>cost / <double>flow.weight
        self.under_way += cost
        flow.under_way += cost
        flow._newer = max(flow._newer, min(flow.under_way, self._most))
        if flow._newer > flow._peak:
            self._held += flow._newer - flow._peak
            flow._peak = flow._newer
        self._left -= cost
        if self._left <= 0:
            self._forget()
        return 0

    cdef int _forget(self) except -1:
        """Of what was under way, and of who asked, only the newer half counts."""
        cdef Flow flow
        cdef list before = self._lately
        self._left = _LATELY * self._alone
        self._lately, self._weights, self._held = [], 0, 0
        for one in before:
            flow = <Flow>one
            flow._peak, flow._newer = flow._newer, min(flow.under_way, self._most)
            flow._lately = False
            if flow._peak or flow.waiting:
                self._asks(flow)
                self._held += flow._peak
        return 0

    cdef int _list(self, Flow flow) except -1:
        if not flow._listed:
            flow._listed = True
            self._entries += 1
            heappush(self._order, (max(self._now, flow._finish), self._entries, flow))
        return 0

    cdef list _next(self):
        cdef list begun = [], full = []
        cdef Flow flow
        cdef Py_ssize_t piece, left, most, room
        while self._order and self.under_way < (most := self._now_most()):
            entry = self._order[0]
            start, _, flow = entry
            if flow.waiting:
                work, waits = next(iter(flow.waiting.items()))
                left, room = waits, self._room(flow)
                piece = max(min(most // _PIECES, max(self._busy, self._share(flow)) // 2), 1)
                piece = min(left, piece if flow.under_way else min(piece, room))
                if piece > room:  # others do not wait for that
                    full.append(heappop(self._order))
                    continue
                if self.under_way + piece > most:
                    break
                if piece < left:
                    flow.waiting[work] = left - piece
                else:
                    del flow.waiting[work]
                self._begin(flow, start, piece)
                begun.append((work, piece))
            heappop(self._order)
            flow._listed = False
            if flow.waiting:
                self._list(flow)
        for entry in full:
            heappush(self._order, entry)
        return begun
