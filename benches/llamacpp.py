"""llama-cpp-python without its loading log, which is hundreds of lines; errors still come back as return codes."""
import ctypes


# Kept at module level because the C side holds on to it.
@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def silent(level, text, user_data):
    pass


def llama_cpp():
    import llama_cpp.llama_cpp as lib

    lib.llama_log_set(silent, ctypes.c_void_p(0))
    lib.llama_backend_init()
    return lib
