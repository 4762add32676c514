#include "comm/base/panel.hpp"

namespace airmoe::reference {

void panel_scores(ConstPanel panel, ConstMatrix x, float* tile) {
  const int64_t ld = tile_ld(x.rows);
  for (int64_t i = 0; i < panel.count; ++i) {
    const float* row = panel.table + panel.rows[i] * panel.ld;
    for (int64_t t = 0; t < ld; ++t) {
      double sum = 0;
      for (int64_t k = 0; k < panel.cols && t < x.rows; ++k) sum += double{row[k]} * x(t, k);
      tile[i * ld + t] = static_cast<float>(sum);
    }
  }
}

void panel_combine(ConstPanel panel, const float* tile, Matrix y) {
  const int64_t ld = tile_ld(y.rows);
  for (int64_t t = 0; t < y.rows; ++t) {
    for (int64_t k = 0; k < panel.cols; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < panel.count; ++i) {
        sum += double{tile[i * ld + t]} * panel.table[panel.rows[i] * panel.ld + k];
      }
      y(t, k) = static_cast<float>(y(t, k) + sum);
    }
  }
}

void panel_accumulate(Panel panel, const float* tile, ConstMatrix x) {
  const int64_t ld = tile_ld(x.rows);
  for (int64_t i = 0; i < panel.count; ++i) {
    float* row = panel.table + panel.rows[i] * panel.ld;
    for (int64_t k = 0; k < panel.cols; ++k) {
      double sum = 0;
      for (int64_t t = 0; t < x.rows; ++t) sum += double{tile[i * ld + t]} * x(t, k);
      row[k] = static_cast<float>(row[k] + sum);
    }
  }
}

}  // namespace airmoe::reference
