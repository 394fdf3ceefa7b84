"""A program with hsmcore-client alone: does what each line of its input says, and prints what came of it. Not imported:
the interpreter of an environment without hsmcore runs the file."""

import asyncio
import json
import sys

import hsmcore_client


def tell(value):
    """Print it, as one line of JSON."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


class Program:
    """What it can do, for one client."""

    def __init__(self, km):
        self.km, self.signed, self.more, self.load = km, [], asyncio.Condition(), None

    async def sign(self, text, count):
        """Sign so many messages at once: the public key, and their signatures."""
        found = await asyncio.gather(*(self.km.sign(f"{text} {number}".encode()) for number in range(count)))
        return self.km.public_key.hex(), [one.hex() for one in found]

    async def begin(self):
        """Sign one message after the other from now on, four at a time."""
        self.load = [asyncio.ensure_future(self.again(number)) for number in range(4)]

    async def again(self, first):
        """Sign messages with every fourth number."""
        while True:
            receipt = await self.km.sign_with_receipt(b"load %d" % first)
            async with self.more:
                self.signed.append((first, receipt.public_key.hex(), receipt.signature.hex()))
                self.more.notify_all()
            first += 4

    async def more_than(self, count):
        """Wait for so many more signatures. Raises what a signature has failed with."""
        wanted = len(self.signed) + count
        async with self.more:
            enough = asyncio.ensure_future(self.more.wait_for(lambda: len(self.signed) >= wanted))
            await asyncio.wait([enough, *self.load], return_when=asyncio.FIRST_COMPLETED)
            await enough if enough.done() else self.load[0]
        return len(self.signed)

    async def end(self):
        """Stop that: number, public key and signature of each."""
        for task in self.load:
            task.cancel()
        await asyncio.gather(*self.load, return_exceptions=True)
        return self.signed

    async def rotate(self):
        """Make a new key and sign with it: the previous and the next one, as they are told."""
        told = asyncio.get_running_loop().create_future()
        off = self.km.on("key-changed", told.set_result)
        before = await self.km.get_current_key_id()
        await self.km.set_current_key_id(await self.km.generate_key())
        details = await told
        off()
        assert details["previous"] == before != details["key_id"] == await self.km.get_current_key_id()
        return [version.public_key.hex() for version in self.km.keys()]  # noqa: SIM118  # no mapping

    async def verify(self, text, signature):
        """Whether it is good under any version."""
        try:
            return await self.km.verify(text.encode(), bytes.fromhex(signature))
        except ModuleNotFoundError as error:
            return str(error)

    async def batched(self, text):
        """Have a message put into a batch: its proof, and whether that is good for it and another message."""
        try:
            found = await self.km.sign_batched(text.encode())
        except ModuleNotFoundError as error:
            return str(error)
        holds = [
            hsmcore_client.verify_batched(found.public_key, one, found.proof) for one in (text.encode(), b"another")
        ]
        shorter = hsmcore_client.proof_to_bytes(found.proof)
        domain = found.proof.partition(b"\n\n")[2].partition(b"/")[0].decode()
        again = hsmcore_client.proof_from_bytes(shorter, text.encode(), found.public_key, domain)
        return found.proof.decode(), found.public_key.hex(), holds, again == found.proof

    async def refused(self):
        """What is no message: the name of the error, that it is one of hsmcore_client's, and its hint's place."""
        try:
            await self.km.sign(b"")
        except hsmcore_client.HsmError as error:
            return type(error).__name__, type(error).__module__, error.retryable


async def main(address, tls):
    """Read lines until there are no more."""
    given = hsmcore_client.ClientTls(*tls) if tls else None
    async with hsmcore_client.Client(address, tls=given, timeout=60) as km:
        program = Program(km)
        tell(km.describe()["client"])
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, *arguments = json.loads(line)
            tell(await getattr(program, name)(*arguments))
    loaded = {name.partition(".")[0] for name in sys.modules}
    tell(sorted(loaded & {"hsmcore", "pydantic", "sqlalchemy", "structlog", "orjson", "nacl"}))


asyncio.run(main(*json.loads(sys.argv[1])))
