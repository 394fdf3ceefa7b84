# The native half for AArch64, on another machine: Debian's cross compiler, the libraries that scripts/sysroot has
# unpacked, and QEMU for the tests.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(sysroot "${CMAKE_CURRENT_LIST_DIR}/../build/aarch64/sysroot")
get_filename_component(sysroot "${sysroot}" ABSOLUTE)
set(libraries "${sysroot}/usr/lib/aarch64-linux-gnu")
# The compiler has its own C library, so this is no sysroot to it. pkg-config prefixes the paths by itself.
set(ENV{PKG_CONFIG_LIBDIR} "${libraries}/pkgconfig")
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${sysroot}")
set(CMAKE_C_FLAGS_INIT "-I${sysroot}/usr/include/aarch64-linux-gnu")
foreach(kind EXE SHARED MODULE)
  set(CMAKE_${kind}_LINKER_FLAGS_INIT "-L${libraries} -Wl,-rpath-link,${libraries}")
endforeach()
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu -E "LD_LIBRARY_PATH=${libraries}")
