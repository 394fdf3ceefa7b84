# Part of _native.pyx: what a message is, and whether a policy's rules for payloads let it be signed.

from collections import namedtuple

from hsmcore.base.base58 import base58

# By number.
cdef tuple _PAYLOADS = ("raw", "digest32", "tx-legacy", "tx-v0", "tx-v1", "off-chain", "block", "state-root",
                        "batch-root", "key-set", "internal", "unknown")
# What a caller may say that a message is.
cdef tuple _CLAIMS = ("tx-legacy", "tx-v0", "tx-v1", "off-chain", "block", "state-root", "digest32", "raw")
cdef dict _ROLES = {"any": HSM_ROLE_ANY, "fee-payer": HSM_ROLE_FEE_PAYER, "authority": HSM_ROLE_AUTHORITY}
cdef uint32_t _TRANSACTIONS = 1 << <int>HSM_PAYLOAD_TX_LEGACY | 1 << <int>HSM_PAYLOAD_TX_V0 | 1 << <int>HSM_PAYLOAD_TX_V1
# May be listed, but no caller has one signed.
cdef uint32_t _OWN = 1 << <int>HSM_PAYLOAD_BATCH_ROOT | 1 << <int>HSM_PAYLOAD_KEY_SET
cdef uint32_t _ORDERED = 1 << <int>HSM_PAYLOAD_BLOCK | 1 << <int>HSM_PAYLOAD_STATE_ROOT | _OWN
cdef uint32_t _PLAIN = 1 << <int>HSM_PAYLOAD_RAW | 1 << <int>HSM_PAYLOAD_DIGEST32
cdef uint32_t _NEVER = 1 << <int>HSM_PAYLOAD_INTERNAL | 1 << <int>HSM_PAYLOAD_UNKNOWN
cdef uint32_t _LEAVES = _TRANSACTIONS | _PLAIN | 1 << <int>HSM_PAYLOAD_OFF_CHAIN
# Positions are signed 64-bit numbers in the state store.
cdef uint64_t _MOST_POSITION = (<uint64_t>1 << 63) - 1

MOST_OWNED = HSM_MOST_OWNED
Look = namedtuple("Look", ("kind", "refusal", "domain", "position", "moves"), module="hsmcore._native", defaults=((),))

cdef struct _format:
    hsm_payload kind
    const uint8_t *prefix
    Py_ssize_t prefix_len, length, offset, size
    bint big


def classify(message):
    """The class of a message by its bytes alone (native/include/hsmcore/payload.h). Any thread. Raises
    InvalidMessageType."""
    cdef bytes data = _frozen(message)
    cdef hsm_payload_parts parts
    return _PAYLOADS[<int>_payload(data, &parts)]


cdef hsm_payload _payload(bytes data, hsm_payload_parts *parts):
    return hsm_payload_of(<const uint8_t *>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data), parts)


cdef bytes _addresses(object addresses):
    """Keys of 32 bytes, one after the other."""
    keys = [_frozen(address) for address in addresses]
    if any(len(key) != HSM_ADDRESS for key in keys):
        raise BadArgument(f"an address is {HSM_ADDRESS} bytes long")
    return b"".join(keys)


cdef bytes _sorted(object addresses):
    return _addresses(sorted(addresses))


cdef dict _programs():
    cdef dict found = {}
    for i in range(HSM_PROGRAMS):
        program = &hsm_programs[i]
        known, names = found.setdefault(program.name.decode(), ([], []))
        known.append(program.address[:HSM_ADDRESS])
        names.extend(program.forms[row].name.decode() for row in range(program.form_count))
    return {name: (tuple(known), tuple(dict.fromkeys(names))) for name, (known, names) in found.items()}


# The programs that have a name: their addresses, and the names of their instructions; none: they are not told apart.
PROGRAMS = _programs()


@cython.final
cdef class Gate:
    """Says what a message is, and whether the rules of a policy for payloads let it be signed. Any thread."""

    cdef hsm_rules _rules
    cdef bint _asks  # for the role of the key, or for the caller
    cdef bint _any  # what nothing is said of is not looked at
    cdef uint32_t _kinds  # a bit for each that is allowed
    cdef str _domain
    cdef _format *_formats
    cdef Py_ssize_t _format_count
    cdef tuple _owned  # in the order of the rules
    cdef tuple _kept  # bytes that the rules and formats point into

    def __cinit__(self, *, kinds, str domain, formats=(), programs=None, instructions=(), recipients=None,
                  owned=(), uint64_t max_fee=0, str role="any", bint callers=False):
        """`kinds`: names of what may be signed; "prehashed" is none of a message; None: for leaves of batches, any bytes,
        which are "raw" unless their caller says a kind. `formats`: of raw messages and digests that are ordered: (kind,
        prefix, length, offset of the position, its bytes, whether it is big-endian). `programs`: addresses of 32 bytes
        of those that may be called, whatever they are told; None: any. `instructions`: (program, name) of PROGRAMS, that
        may be signed beside. `recipients`: addresses; None: any. `owned`: addresses, MOST_OWNED at most. `max_fee`:
        lamports; 0: any. `callers`: each request is looked at. Raises BadArgument."""
        self._any = kinds is None
        self._kinds = _LEAVES if self._any else 0
        for kind in kinds or ():
            number = _PAYLOADS.index(kind) if kind in _PAYLOADS else -1
            if kind != "prehashed" and (number < 0 or _NEVER >> number & 1):
                raise BadArgument(f"no kind of payload that may be signed: {kind!r}")
            self._kinds |= 0 if number < 0 else 1 << <int>number
        if role not in _ROLES:
            raise BadArgument(f"no role of a key: {role!r}")
        self._domain = domain
        self._rules.role = _ROLES[role]
        self._rules.max_fee = max_fee
        self._asks = callers or self._rules.role != HSM_ROLE_ANY
        self._owned = tuple(sorted(owned))
        if len(self._owned) > HSM_MOST_OWNED:
            raise BadArgument(f"at most {HSM_MOST_OWNED} accounts are owned, not {len(self._owned)}")
        listed, whom, own = _sorted(programs or ()), _sorted(recipients or ()), _addresses(self._owned)
        kept = [listed, whom, own]
        self._rules.owned, self._rules.owned_count = <const uint8_t *>PyBytes_AS_STRING(own), <size_t>len(self._owned)
        if programs is not None:
            self._rules.programs = <const uint8_t *>PyBytes_AS_STRING(listed)
            self._rules.program_count = <size_t>PyBytes_GET_SIZE(listed) // HSM_ADDRESS
        if recipients is not None:
            self._rules.recipients = <const uint8_t *>PyBytes_AS_STRING(whom)
            self._rules.recipient_count = <size_t>PyBytes_GET_SIZE(whom) // HSM_ADDRESS
        for program, name in instructions:
            self._allow(program, name)
        self._formats = <_format *>PyMem_Calloc(len(formats) + 1, sizeof(_format))
        if self._formats == NULL:
            raise MemoryError
        for form in formats:
            kind, prefix, length, offset, size, big = form
            kept.append(self._add(kind, prefix, length, offset, size, big))
        self._kept = tuple(kept)

    def __dealloc__(self):
        PyMem_Free(self._formats)

    cdef int _allow(self, str program, str name) except -1:
        cdef int found = 0
        for i in range(HSM_PROGRAMS):
            for row in range(hsm_programs[i].form_count):
                if hsm_programs[i].name.decode() == program and hsm_programs[i].forms[row].name.decode() == name:
                    self._rules.forms[i][row // 64] |= <uint64_t>1 << (row % 64)
                    found = 1
        if not found:
            raise BadArgument(f"no instruction that has a name: {program}.{name}")
        return 0

    cdef bytes _add(self, str kind, bytes prefix, Py_ssize_t length, Py_ssize_t offset, Py_ssize_t size, bint big):
        cdef _format *form = &self._formats[self._format_count]
        if kind not in ("block", "state-root") or not 1 <= size <= 8 or offset < 0 or offset > length - size:
            raise BadArgument(f"no format of an ordered payload: {(kind, prefix, length, offset, size)}")
        form.kind = <hsm_payload><int>_PAYLOADS.index(kind)
        form.prefix, form.prefix_len = <const uint8_t *>PyBytes_AS_STRING(prefix), PyBytes_GET_SIZE(prefix)
        form.length, form.offset, form.size, form.big = length, offset, size, big
        self._format_count += 1
        return prefix

    cdef const _format *_form_of(self, const uint8_t *message, Py_ssize_t size) noexcept:
        for i in range(self._format_count):
            form = &self._formats[i]
            if size == form.length and size >= form.prefix_len and not memcmp(message, form.prefix, form.prefix_len):
                return form
        return NULL

    def passes(self, message, kind, position=None):
        """Whether `look` would refuse nothing and nothing else is to be done: the message is bytes of no ordered kind,
        and of `kind` unless that is None, there is no `position`, and neither a role nor a caller is asked for, and
        nothing leaves an owned account. The fast way: most transactions."""
        return position is None and self._passing(message, kind) >= 0

    def passes_all(self, list messages, kind=None):
        """Whether each of these messages passes, as `kind` unless that is None."""
        for message in messages:
            if self._passing(message, kind) < 0:
                return False
        return True

    cdef int _passing(self, message, kind):
        """The class of a message that `passes`; -1: it does not."""
        cdef hsm_payload_parts parts
        cdef hsm_judgement judgement
        if self._asks or type(message) is not bytes:
            return -1
        if self._any and kind is None:
            return <int>HSM_PAYLOAD_RAW
        cdef bytes data = <bytes>message
        cdef hsm_payload payload = _payload(data, &parts)
        cdef uint32_t bit = 1 << <int>payload
        if not self._kinds & bit or bit & _ORDERED:
            return -1
        if bit & _TRANSACTIONS:
            if hsm_rules_judge(&self._rules, &parts.transaction, &judgement) != HSM_REFUSAL_NONE or judgement.moves:
                return -1
        elif bit & _PLAIN and self._format_count and self._form_of(
                <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)) != NULL:
            return -1
        return <int>payload if kind is None or kind == _PAYLOADS[<int>payload] else -1

    def look(self, message, kind=None, signers=()):
        """Return a Look: what the message is, and in `refusal` why the rules refuse it, or None. `kind`: what the caller
        says it is. `signers`: public keys (32 bytes) that sign it, for the rule about roles. `domain` and `position`
        are those of an ordered payload, `moves` what leaves owned accounts: (address, amount) of each. Raises
        InvalidMessageType, BadArgument."""
        cdef bytes data = _frozen(message)
        cdef bytes keys = _addresses(signers)
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef hsm_payload_parts parts
        cdef hsm_judgement judgement
        cdef hsm_rules rules = self._rules
        cdef const _format *form = NULL
        cdef hsm_payload payload = _payload(data, &parts)
        cdef uint64_t place = 0
        cdef uint32_t bit
        if kind is not None and kind not in _CLAIMS:
            raise BadArgument(f"there is no kind {kind!r:.40} of a message; kinds are {', '.join(_CLAIMS)}")
        if self._any and kind is None:
            return Look(_PAYLOADS[<int>HSM_PAYLOAD_RAW], None, None, None)
        domain = None
        if 1 << <int>payload & _PLAIN:
            form = self._form_of(start, PyBytes_GET_SIZE(data))
        if form != NULL:
            payload, domain = form.kind, self._domain
            for i in range(form.size):
                place = place << 8 | start[form.offset + (i if form.big else form.size - 1 - i)]
        elif HSM_PAYLOAD_BLOCK <= payload <= HSM_PAYLOAD_STATE_ROOT:
            domain = parts.ordered.domain[:parts.ordered.domain_len].decode()
            place = parts.ordered.position
        bit = 1 << <int>payload
        name = _PAYLOADS[<int>payload]
        refusal, moves = None, ()
        if payload == HSM_PAYLOAD_UNKNOWN:
            refusal = "it is unknown: it begins like a transaction, a checkpoint or a marked payload, and is none"
        elif bit & (_NEVER | _OWN):
            refusal = f"it is {name}: only hsmcore itself has that signed"
        elif payload == HSM_PAYLOAD_DIGEST32 and kind in ("block", "state-root"):
            refusal = (f"it is a bare digest, which says neither kind nor position: have "
                       f"hsmcore.payload({kind!r}, domain, position, digest) signed")
        elif kind is not None and kind != name:
            refusal = f"it is {name}, not {kind}"
        elif not self._kinds & bit:
            refusal = f"kinds does not list {name}"
        elif domain is not None:
            if domain != self._domain:
                refusal = f"its domain is {domain!r}, not {self._domain!r}"
            elif place > _MOST_POSITION:
                refusal = f"its position, {place}, is above 2^63-1"
        elif bit & _TRANSACTIONS:
            rules.signers, rules.signer_count = <const uint8_t *>PyBytes_AS_STRING(keys), <size_t>len(keys) // HSM_ADDRESS
            refusal = _refusal(hsm_rules_judge(&rules, &parts.transaction, &judgement), &judgement, &rules)
            if refusal is None and judgement.moves:
                moves = tuple([(base58(at), judgement.leaves[i]) for i, at in enumerate(self._owned) if judgement.leaves[i]])
        return Look(name, refusal, domain, None if domain is None else place, moves)


cdef str _refusal(hsm_refusal refusal, const hsm_judgement *found, const hsm_rules *rules):
    if refusal == HSM_REFUSAL_NONE:
        return None
    if refusal == HSM_REFUSAL_UNSOUND:
        return "the transaction is one that the chain rejects: an index, its header or a limit is wrong"
    if refusal == HSM_REFUSAL_PROGRAM:
        return f"it has {_instruction(found)}, which programs does not list"
    if refusal == HSM_REFUSAL_RECIPIENT:
        who = "which a look-up table hides or which is missing" if found.address == NULL else _address(found)
        return f"the recipient of {_instruction(found)}, {who}, is not among recipients"
    if refusal == HSM_REFUSAL_OWNED:
        if found.account == NULL:
            return f"{_instruction(found)} names an account that a look-up table hides, which may be an owned one"
        return f"{_instruction(found)} names {base58(found.account[:HSM_ADDRESS])}, which is owned, and says no amount"
    if refusal == HSM_REFUSAL_FEE:
        return f"its fee may be {found.fee} lamports, and maxFeeLamports is {rules.max_fee}"
    if refusal == HSM_REFUSAL_NAMED:
        return "an instruction names the key that pays the fee"
    return "the key does not pay the fee" if rules.role == HSM_ROLE_FEE_PAYER else "the key is none of the required signers"


cdef str _instruction(const hsm_judgement *found):
    if found.program == NULL:
        return f"an instruction of {_address(found)}"
    name = found.program.name.decode()
    if found.form != NULL:
        return f"{name}.{found.form.name.decode()}"
    return f"{name} instruction {found.tag}" if found.program.form_count else f"an instruction of {name}"


cdef str _address(const hsm_judgement *judgement):
    return base58(judgement.address[:HSM_ADDRESS])
