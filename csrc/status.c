/*
 * status.c - statuses as text, and filling in errors.
 */
#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

const char *l2c_status_text(l2c_status status) {
    switch (status) {
    case L2C_OK: return "ok";
    case L2C_IO: return "input/output error";
    case L2C_FORMAT: return "invalid file";
    case L2C_NOMEM: return "out of memory";
    case L2C_ARG: return "invalid argument";
    case L2C_RANGE: return "out of range";
    case L2C_BUSY: return "busy";
    case L2C_UNSUPPORTED: return "not supported";
    case L2C_CANCELLED: return "cancelled";
    case L2C_NONFINITE: return "non-finite logits";
    case L2C_FULL: return "full";
    case L2C_DEVICE: return "device error";
    }
    return "unknown status";
}

l2c_status l2c_fail(l2c_error *err, l2c_status status, const char *format, ...) {
    if (err == NULL) return status;
    err->status = status;
    err->sys_errno = 0;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(err->message, sizeof err->message, format, arguments);
    va_end(arguments);
    return status;
}
