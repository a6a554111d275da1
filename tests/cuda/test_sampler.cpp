#include "check.h"
void test_sampler() {}
