// Rust's standard library asks Windows for random bytes by ProcessPrng of bcryptprimitives.dll, which Wine before 9 does
// not have. This library has that one function, for the tests under Wine only: it is no part of what is shipped.
#include <windows.h>
#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T length) {
    const SIZE_T most = 0x10000000;
    while (length > 0) {
        ULONG part = (ULONG)(length < most ? length : most);
        if (!RtlGenRandom(data, part)) return FALSE;
        data += part;
        length -= part;
    }
    return TRUE;
}
