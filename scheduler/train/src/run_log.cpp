#include "scheduler/train/run_log.hpp"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>
#include <unistd.h>

#include "comm/base/error.hpp"

namespace airmoe::scheduler {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// Lines of steps up to `last` of an older file; what a killed run left behind the checkpoint goes.
std::string lines_up_to(const std::string& path, int64_t last) {
  std::ifstream in(path);
  std::string kept, line;
  while (std::getline(in, line)) {
    const json j = json::parse(line, nullptr, false);
    if (j.is_object() && j.value("step", int64_t{0}) <= last) kept += line + "\n";
  }
  return kept;
}

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}h{:02d}m", s / 3600, s / 60 % 60);
  if (s >= 60) return fmt::format("{}m{:02d}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

std::string bytes_text(double bytes) {
  if (bytes >= 1e6) return fmt::format("{:.1f} MB", bytes / 1e6);
  if (bytes >= 1e3) return fmt::format("{:.1f} kB", bytes / 1e3);
  return fmt::format("{:.0f} B", bytes);
}

}  // namespace

void write_file_atomically(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  {
    std::ofstream out(temporary, std::ios::trunc);
    out << text;
    out.flush();
    if (!out) {
      const int error = errno;
      std::error_code ignored;
      fs::remove(temporary, ignored);
      fail(ExitCode::io, "cannot write {}: {}", path, std::strerror(error));
    }
  }
  std::error_code error;
  fs::rename(temporary, path, error);
  if (error) fail(ExitCode::io, "cannot write {}: {}", path, error.message());
}

RunLog::RunLog(const std::string& output_dir, int64_t resumed_at, bool show_progress)
    : path_(output_dir + "/metrics.jsonl"), show_progress_(show_progress) {
  std::error_code error;
  if (fs::exists(path_, error)) {
    if (resumed_at > 0) {
      write_file_atomically(path_, lines_up_to(path_, resumed_at));
    } else {
      int64_t n = 1;
      while (fs::exists(fmt::format("{}/metrics.{}.jsonl", output_dir, n))) ++n;
      fs::rename(path_, fmt::format("{}/metrics.{}.jsonl", output_dir, n), error);
      if (error) fail(ExitCode::io, "cannot set {} aside: {}", path_, error.message());
    }
  }
  file_ = std::fopen(path_.c_str(), "a");
  if (file_ == nullptr) {
    fail(ExitCode::io, "cannot write {}: {}: choose another --output-dir", path_,
         std::strerror(errno));
  }
}

RunLog::~RunLog() {
  clear_progress();
  if (file_ != nullptr) std::fclose(file_);
}

void RunLog::write(const std::string& line) {
  if (std::fprintf(file_, "%s\n", line.c_str()) < 0 || std::fflush(file_) != 0) {
    fail(ExitCode::io, "cannot write {}: {}", path_, std::strerror(errno));
  }
}

void RunLog::step(const StepReport& r) {
  json j = {
      {"step", r.step},
      {"loss", r.loss},
      {"balance_loss", r.balance_loss},
      {"grad_norm", r.gradient_norm},
      {"learning_rate", r.learning_rate},
      {"tokens_per_second", r.tokens_per_second},
      {"lambda_candidate", r.lambda_candidate},
      {"lambda_selected", r.lambda_selected},
      {"bytes_dispatch", r.bytes_dispatch},
      {"bytes_select", r.bytes_select},
      {"bytes_combine", r.bytes_combine},
      {"bytes_backward", r.bytes_backward},
      {"bytes_per_token", r.bytes_dispatch + r.bytes_select + r.bytes_combine + r.bytes_backward},
      {"bytes_copies", r.bytes_copies},
      {"bytes_lists", r.bytes_lists},
      {"hidden_share", r.hidden_share},
      {"layer_seconds", r.layer_seconds},
      {"codewords_revived", r.codewords_revived}};
  for (const auto& [key, value] : r.evaluation) j[key] = value;
  write(j.dump());
  if (show_progress_) draw(r);
}

void RunLog::draw(const StepReport& r) {
  const auto now = std::chrono::steady_clock::now();
  if (drawn_ && r.step < r.steps && now - last_draw_ < std::chrono::milliseconds(200)) return;
  last_draw_ = now;
  drawn_ = true;
  std::fprintf(
      stderr, "\r\033[Kstep %ld/%ld  loss %.4f  %.0f tokens/s  %s left  %.2f ranks/token  %s/token",
      static_cast<long>(r.step), static_cast<long>(r.steps), r.loss, r.tokens_per_second,
      duration(r.seconds_left).c_str(), r.lambda_candidate,
      bytes_text(r.bytes_dispatch + r.bytes_select + r.bytes_combine + r.bytes_backward).c_str());
  std::fflush(stderr);
}

void RunLog::clear_progress() {
  if (!drawn_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  drawn_ = false;
}

void RunLog::say(const std::string& line) {
  clear_progress();
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

}  // namespace airmoe::scheduler
