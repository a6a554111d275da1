#include "check.h"
void test_rows() {}
