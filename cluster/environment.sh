# shellcheck shell=bash
# Sourced by the scripts of this folder: settings for several ranks on one machine.
if [ "$(id -u)" -eq 0 ]; then  # Open MPI refuses to run as root unless told twice
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# More ranks than cores are allowed, none is pinned, and a rank that waits gives its core away.
# Containers often forbid the single-copy path (process_vm_readv) of Open MPI 4.
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
# Open MPI's component cm looks for PSM2 and libfabric devices, 0.2 s at each start.
export OMPI_MCA_pml="${OMPI_MCA_pml:-^cm}"
export OPENBLAS_NUM_THREADS=1
# A Python with h5py, numpy and matplotlib; the system packages go to /usr/bin/python3.
export AIRMOE_PYTHON="${AIRMOE_PYTHON:-/usr/bin/python3}"
