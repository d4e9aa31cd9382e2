# SPDX-License-Identifier: MIT
# Finds OpenBLAS and its cblas.h and defines the target miaobi_openblas; MIAOBI_OPENBLAS_FOUND tells.
#
# Debian and Ubuntu: libopenblas-dev; Fedora: openblas-devel; Homebrew: openblas; vcpkg: openblas. Elsewhere set
# CMAKE_PREFIX_PATH to the folder that has include/ and lib/.
find_path(MIAOBI_CBLAS_INCLUDE cblas.h PATH_SUFFIXES openblas openblas-pthread x86_64-linux-gnu/openblas-pthread
  HINTS /opt/homebrew/opt/openblas/include /usr/local/opt/openblas/include)
find_library(MIAOBI_OPENBLAS_LIBRARY NAMES openblas libopenblas
  HINTS /opt/homebrew/opt/openblas/lib /usr/local/opt/openblas/lib)
mark_as_advanced(MIAOBI_CBLAS_INCLUDE MIAOBI_OPENBLAS_LIBRARY)

set(MIAOBI_OPENBLAS_FOUND FALSE)
if(MIAOBI_CBLAS_INCLUDE AND MIAOBI_OPENBLAS_LIBRARY)
  set(MIAOBI_OPENBLAS_FOUND TRUE)
  add_library(miaobi_openblas INTERFACE)
  target_include_directories(miaobi_openblas SYSTEM INTERFACE ${MIAOBI_CBLAS_INCLUDE})
  target_link_libraries(miaobi_openblas INTERFACE ${MIAOBI_OPENBLAS_LIBRARY})
endif()
