#pragma once
// Centroids on the unit sphere (paper, "Forward" 1) on a device: router/shortlist.hpp's functions
// with the same bits. T: float or __nv_bfloat16.

#include <cstdint>

#include <cuda_runtime_api.h>

namespace airmoe::router::cuda {

/// unit(e) = centroid(e) / |centroid(e)|, rounded to float and then to T; inverse_norm[e] =
/// 1 / |centroid(e)|; both zero for a row shorter than the smallest normal float. Norms in double
/// precision. Throws Error naming --dim unless d is a multiple of 8, at most 2048.
/// Shapes: [rows, d], [rows, d], [rows]; device memory, rows 16-byte aligned. Asynchronous. Local.
template <class T>
void project_to_sphere(const float* centroid, int64_t rows, int64_t d, T* unit, float* inverse_norm,
                       cudaStream_t stream);

/// Gradient through the projection, in place: g <- (g - <g, unit> unit) * inverse_norm, with unit
/// made anew from the centroid, in float whatever T was.
/// @param chosen  rows r with chosen[r] != number are left alone; nullptr: all are projected
/// Shapes: [rows, d], [rows, d], [rows], [rows]. Asynchronous. Local.
void project_to_sphere_backward(float* gradient, const float* centroid, const float* inverse_norm,
                                int64_t rows, int64_t d, const int32_t* chosen, int32_t number,
                                cudaStream_t stream);

}  // namespace airmoe::router::cuda
