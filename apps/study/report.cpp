#include "apps/study/report.hpp"

#include <cerrno>
#include <cstring>
#include <fstream>

#include <fmt/format.h>
#include <fmt/os.h>

#include "comm/base/error.hpp"

namespace airmoe::study {

std::string Subject::text() const {
  return fmt::format("E {} K {} M {} G {} d {} m {} tokens {}{}", experts, active, length,
                     codewords, shape.dim, shape.expert_dim, tokens, synthetic ? " SYNTHETIC" : "");
}

std::string table_head(const Subject& s) {
  return fmt::format(
      "# {}{}\n# {}\n"
      "# model of time: {:g} s per message, {:g} B/s each way, {:g} B/s memory, {:g} FLOP/s per "
      "rank\n"
      "# bytes are per token of the step and sent to other ranks; against: deduplicated, random / "
      "this; x E/R: rows on the fullest rank;\n"
      "# max/mean: of tokens computed and of work (FLOPs) over ranks; *: the best budget; auto "
      "names what it chose\n",
      s.synthetic ? "SYNTHETIC routing, no trace: " : "", s.source, s.text(), s.machine.latency_s,
      s.machine.bandwidth_bytes_per_s, s.machine.memory_bandwidth_bytes_per_s, s.machine.flops);
}

std::string table(std::span<const Row> rows) {
  if (rows.empty()) return "";
  double reference = 0;
  for (const Row& row : rows) {
    if (row.strategy == "deduplicated" && row.placement == "random") reference = row.total_bytes();
  }
  std::string text = fmt::format("\n{} ranks, {} tokens per rank and micro-batch\n",
                                 rows.front().ranks, rows.front().tokens_per_rank);
  text += fmt::format(
      "{:<12} {:<12} {:>6} {:>7} {:>7} {:>9} {:>9} {:>9} {:>9} {:>10} {:>8} {:>9} "
      "{:>8} {:>6} {:>6} {:>6} {:>9}\n",
      "strategy", "placement", "budget", "cand.r", "sel.r", "forward", "backward", "copies",
      "lists", "total", "against", "messages", "MB/rank", "x E/R", "tokens", "work", "ms");
  for (const Row& row : rows) {
    const double total = row.total_bytes();
    text += fmt::format(
        "{:<12} {:<12} {:>6} {:>7.2f} {:>7.2f} {:>9.0f} {:>9.0f} {:>9.0f} {:>9.0f} {:>10.0f} "
        "{:>8} {:>9.0f} {:>8.1f} {:>6.2f} {:>6.2f} {:>6.2f} {:>9.3f}{}\n",
        row.strategy, row.placement, row.budget > 0 ? fmt::format("{:g}", row.budget) : "-",
        row.candidate_ranks, row.selected_ranks, row.forward_bytes(), row.backward_bytes(),
        row.copy_bytes_per_token(), row.list_bytes(), total,
        reference > 0 && total > 0 ? fmt::format("{:.2f}", reference / total) : "-",
        row.messages_mean, row.memory_max / 1e6, row.rows_max, row.tokens_imbalance,
        row.work_imbalance, row.seconds * 1e3, row.best ? " *" : "");
  }
  return text;
}

void write_csv(const std::string& path, const Subject& subject, std::span<const Row> rows) {
  std::ofstream file(path);
  file << "# " << subject.source << "\n# " << subject.text() << '\n';
  file << "ranks,tokens_per_rank,strategy,placement,budget,best,synthetic,candidate_ranks,"
          "selected_ranks,forward_bytes,backward_bytes,copy_bytes,list_bytes,total_bytes,"
          "copy_bytes_per_step,messages_mean,messages_max,rows_max,memory_max_bytes,"
          "tokens_imbalance,work_imbalance,seconds,estimated_bytes,estimated_seconds,plan_seconds";
  for (int c = 0; c < scheduler::kChannels; ++c) {
    file << ",channel_" << scheduler::name_of(static_cast<scheduler::Channel>(c));
  }
  file << '\n';
  for (const Row& r : rows) {
    file << fmt::format(
        "{},{},{},{},{:g},{:d},{:d},{:.6g},{:.6g},{:.8g},{:.8g},{:.8g},{:.8g},{:.8g},{:.10g},"
        "{:.6g},{:.6g},{:.6g},{:.8g},{:.6g},{:.6g},{:.6g},{:.8g},{:.6g},{:.4g}",
        r.ranks, r.tokens_per_rank, r.strategy, r.placement, r.budget, r.best, subject.synthetic,
        r.candidate_ranks, r.selected_ranks, r.forward_bytes(), r.backward_bytes(),
        r.copy_bytes_per_token(), r.list_bytes(), r.total_bytes(), r.copy_bytes, r.messages_mean,
        r.messages_max, r.rows_max, r.memory_max, r.tokens_imbalance, r.work_imbalance, r.seconds,
        r.estimated_bytes, r.estimated_seconds, r.plan_seconds);
    for (const double bytes : r.bytes) file << fmt::format(",{:.8g}", bytes);
    file << '\n';
  }
  file.close();
  if (!file) fail(ExitCode::io, "{}: cannot write this file: {}", path, std::strerror(errno));
}

}  // namespace airmoe::study
