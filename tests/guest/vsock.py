"""A program for the test guest that passes its standard input on to the host, port 5000 of vsock.

busybox cannot do that, and socat brings a dozen libraries, which every start of a guest would have to unpack. So it is
written down here, for x86-64: an ELF file of some 200 bytes that ends with 0 when the host has listened.
"""

import struct

_BASE = 0x400000
_HEADERS = 64 + 56
# struct sockaddr_vm: family, two bytes of nothing, port, CID (2 is the host), rest.
_ADDRESS = struct.pack("<HHII4x", 40, 0, 5000, 2)
_SYSCALL = b"\x0f\x05"


def _code(address: int) -> bytes:
    failed = b"\xbf\x01\x00\x00\x00"  # mov edi, 1
    said = (
        b"\x31\xff"  # xor edi, edi: standard input
        b"\x48\x81\xec\x00\x10\x00\x00"  # sub rsp, 4096
        b"\x48\x89\xe6"  # mov rsi, rsp
        b"\xba\x00\x10\x00\x00"  # mov edx, 4096
        b"\x31\xc0" + _SYSCALL +  # read(0, rsp, 4096)
        b"\x89\xc2"  # mov edx, eax: so many bytes
        b"\x89\xdf"  # mov edi, ebx
        b"\xb8\x01\x00\x00\x00" + _SYSCALL +  # write(the socket, rsp, them)
        b"\x31\xff"  # xor edi, edi
        b"\xeb" + bytes([len(failed)])  # jmp over the failure
    )  # fmt: skip
    return (
        b"\xbf\x28\x00\x00\x00"  # mov edi, AF_VSOCK
        b"\xbe\x01\x00\x00\x00"  # mov esi, SOCK_STREAM
        b"\x31\xd2"  # xor edx, edx
        b"\xb8\x29\x00\x00\x00" + _SYSCALL +  # socket(AF_VSOCK, SOCK_STREAM, 0)
        b"\x89\xc3"  # mov ebx, eax: the socket
        b"\x89\xdf"  # mov edi, ebx
        b"\xbe" + struct.pack("<I", address) +  # mov esi, the address
        b"\xba\x10\x00\x00\x00"  # mov edx, 16
        b"\xb8\x2a\x00\x00\x00" + _SYSCALL +  # connect(the socket, the address, 16)
        b"\x85\xc0"  # test eax, eax
        b"\x75" + bytes([len(said)]) +  # jnz to the failure
        said + failed +
        b"\xb8\x3c\x00\x00\x00" + _SYSCALL  # exit(edi)
    )  # fmt: skip


def program() -> bytes:
    """The bytes of its file."""
    size = len(_code(0))
    code = _code(_BASE + _HEADERS + size)
    length = _HEADERS + size + len(_ADDRESS)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01",
        *(2, 62, 1, _BASE + _HEADERS),  # an executable, for x86-64, of version 1, and where it begins
        *(64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, length, length, 0x1000)
    return header + segment + code + _ADDRESS
