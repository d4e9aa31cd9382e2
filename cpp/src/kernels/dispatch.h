// SPDX-License-Identifier: MIT
// The kernel table in force.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace miaobi {

// Chosen at the first call: the widest table that this machine runs, or the one that MIAOBI_ISA names.
// Throws Error if MIAOBI_ISA names a table that does not exist or that the machine cannot run.
const KernelTable& kernels_in_use();

// Tables that this machine can run, best first; the last is always "generic".
std::vector<const KernelTable*> supported_kernels();

// Puts another table in force, by name; for tests, which compare them within one process.
void use_kernels(const std::string& name);

}  // namespace miaobi
