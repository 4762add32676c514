#include "scheduler/store/trace.hpp"

#include <unistd.h>

#include "comm/base/error.hpp"
#include "scheduler/store/agreement.hpp"
#include "scheduler/store/src/checkpoint_meta.hpp"
#include "scheduler/store/src/posix_file.hpp"

namespace airmoe::scheduler {

TraceWriter::TraceWriter(comm::Communicator& comm, std::string path, Mode mode,
                         std::string config_json, std::string writer)
    : comm_(comm),
      path_(std::move(path)),
      extend_(false),
      config_json_(std::move(config_json)),
      writer_(std::move(writer)) {
  int32_t extend = 0;
  on_root(comm_, [&] {
    const std::string directory = directory_of(path_);
    if (::access(directory.c_str(), W_OK | X_OK) != 0) {
      fail(ExitCode::io, "trace {}: the directory {} does not exist or is not writable", path_,
           directory);
    }
    if (::access(path_.c_str(), F_OK) != 0) return;
    try {
      const StoredFile file = read_stored_file(path_);
      if (file.format != kTraceFormat) {
        fail(ExitCode::bad_data, "{}: its format is `{}`, not {}", path_, file.format,
             kTraceFormat);
      }
    } catch (const Error& error) {  // an older trace may be replaced, nothing else
      fail(ExitCode::bad_data, "trace {} exists and is not a good trace, name another file: {}",
           path_, error.what());
    }
    extend = mode == Mode::extend ? 1 : 0;
  });
  comm_.broadcast(std::span<int32_t>(&extend, 1), 0);
  extend_ = extend == 1;
}

WriteResult TraceWriter::add_step(int64_t step, std::span<const TraceLayer> layers) {
  FileHeader header{kTraceFormat, kTraceVersion, {}};
  header.attributes = {{"/", "config_json", config_json_}, {"/", "writer", writer_}};
  std::string created = utc_now();
  broadcast_string(comm_, created);
  header.attributes.push_back({"/", "created_utc", created});
  const std::string step_group = fmt::format("/step_{:06}", step);
  header.attributes.push_back({step_group, "step", step});
  std::vector<StoredArray> arrays;
  for (const auto& layer : layers) {
    const std::string group = fmt::format("{}/layer_{:02}", step_group, layer.layer);
    header.attributes.push_back({group, "step", step});
    header.attributes.push_back({group, "layer", layer.layer});
    header.attributes.push_back({group, "active", layer.active});
    header.attributes.push_back({group, "jitter", layer.jitter});
    header.attributes.push_back({group, "activation", layer.activation});
    for (const auto& a : layer.arrays) {
      arrays.push_back(a);
      arrays.back().path = group + "/" + a.path;
    }
  }
  WriteOptions options;
  options.extend = extend_;
  const WriteResult result = write_sharded_file(comm_, path_, header, arrays, options);
  extend_ = true;
  return result;
}

}  // namespace airmoe::scheduler
