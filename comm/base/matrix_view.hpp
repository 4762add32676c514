#pragma once
// Library-wide convention: matrices are row-major; a view is passed by value and owns nothing.
// Shapes in comments are written [rows, columns] with the letters of docs/glossary.md.

#include <cstdint>
#include <type_traits>

namespace airmoe {

template <class T>
struct MatrixView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t ld = 0;  ///< elements from one row to the next, >= cols

  MatrixView() = default;
  MatrixView(T* data_, int64_t rows_, int64_t cols_) : MatrixView(data_, rows_, cols_, cols_) {}
  MatrixView(T* data_, int64_t rows_, int64_t cols_, int64_t ld_)
      : data(data_), rows(rows_), cols(cols_), ld(ld_) {}
  /// A view of T converts to a view of const T.
  template <class U>
  requires(std::is_same_v<const U, T>) MatrixView(const MatrixView<U>& other)
      : data(other.data), rows(other.rows), cols(other.cols), ld(other.ld) {}

  T* row(int64_t i) const { return data + i * ld; }
  T& operator()(int64_t i, int64_t j) const { return data[i * ld + j]; }
  /// Rows [begin, begin + count).
  MatrixView slice_rows(int64_t begin, int64_t count) const {
    return {data + begin * ld, count, cols, ld};
  }
};

using ConstMatrix = MatrixView<const float>;
using Matrix = MatrixView<float>;

}  // namespace airmoe
