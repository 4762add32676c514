#pragma once
// The options of airmoe-train and how they become a TrainConfig.

#include <functional>
#include <string>
#include <vector>

#include <boost/program_options.hpp>

#include "scheduler/train/train_config.hpp"

namespace airmoe::apps {

/// Describes every option once: name, type, help, and where its value goes.
class TrainOptions {
 public:
  TrainOptions();

  /// All options, in groups, with units and defaults in the help.
  const boost::program_options::options_description& description() const { return description_; }

  /// Defaults, then the preset, then (if not empty) a checkpoint's configuration, then what the
  /// command line and the --config file gave. Throws Error(ExitCode::usage) naming option and
  /// value.
  scheduler::TrainConfig resolve(const boost::program_options::variables_map& given,
                                 const std::string& checkpoint_config) const;

 private:
  using Setter =
      std::function<void(const boost::program_options::variable_value&, scheduler::TrainConfig&)>;

  template <class T, class Set>
  void add(boost::program_options::options_description& group, const char* name,
           const char* value_name, const std::string& help, Set set);
  void add_model();
  void add_router();
  void add_exchange();
  void add_data();
  void add_training();
  void add_output();

  boost::program_options::options_description description_;
  std::vector<std::pair<std::string, Setter>> setters_;
};

}  // namespace airmoe::apps
